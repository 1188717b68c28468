//! Draws the figures of a bench as SVG files.

use std::error::Error;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

/// One line of a plot: its name, and points sorted by x.
pub(crate) type Line = (String, Vec<(f64, f64)>);

/// The texts of a plot.
pub(crate) struct Labels<'a> {
    /// Name of the file without its extension.
    pub(crate) file: &'a str,
    pub(crate) title: &'a str,
    pub(crate) x: &'a str,
    pub(crate) y: &'a str,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// Width of a plot and height of each panel, in pixels.
const PANEL_SIZE: (u32, u32) = (800, 360);

/// Line colours, distinguishable on white and with colour blindness.
const COLORS: [RGBColor; 5] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(90, 90, 90),
];

/// Directory for the plots. Those of published figures are copied to `benches/plots`.
pub(crate) fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/plots")
}

/// Stacks panels of lines over the same x axis. The first panel names the file.
pub(crate) fn stacked(panels: &[(&Labels<'_>, &[Line])]) -> Result<PathBuf, Box<dyn Error>> {
    let (first, _) = panels.first().ok_or("a plot has a panel")?;
    let points = || {
        panels
            .iter()
            .flat_map(|(_, lines)| *lines)
            .flat_map(|line| &line.1)
    };
    let width = range(points().map(|point| point.0));
    draw(first, panels.len(), |area| {
        let areas = area.split_evenly((panels.len(), 1));
        for ((labels, lines), area) in panels.iter().zip(&areas) {
            let points = lines.iter().flat_map(|line| &line.1);
            let top = points.map(|point| point.1).fold(0.0, f64::max);
            let mut chart = chart(labels, area, width.clone(), top)?;
            for (index, (name, points)) in lines.iter().enumerate() {
                let stroke = COLORS[index % COLORS.len()].stroke_width(2);
                chart
                    .draw_series(LineSeries::new(points.iter().copied(), stroke))?
                    .label(name)
                    .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], stroke));
            }
            // A single line needs no legend besides the title.
            if lines.len() > 1 {
                chart
                    .configure_series_labels()
                    .position(SeriesLabelPosition::UpperLeft)
                    .background_style(WHITE.mix(0.8))
                    .border_style(BLACK.mix(0.3))
                    .label_font(("sans-serif", 13))
                    .draw()?;
            }
        }
        Ok(())
    })
}

/// Draws a histogram from the left edge and the height of each bar. All are `width` wide.
pub(crate) fn bars(
    labels: &Labels<'_>,
    width: f64,
    bars: &[(f64, f64)],
) -> Result<PathBuf, Box<dyn Error>> {
    let edges = bars.iter().flat_map(|bar| [bar.0, bar.0 + width]);
    let top = bars.iter().map(|bar| bar.1).fold(0.0, f64::max);
    draw(labels, 1, |area| {
        let mut chart = chart(labels, area, range(edges), top)?;
        let fill = COLORS[0].filled();
        chart.draw_series(bars.iter().map(|&(left, height)| {
            Rectangle::new([(left, 0.0), (left + width * 0.9, height)], fill)
        }))?;
        Ok(())
    })
}

/// Creates a file with `panels` panels.
fn draw(
    labels: &Labels<'_>,
    panels: usize,
    contents: impl FnOnce(&Area<'_>) -> Result<(), Box<dyn Error>>,
) -> Result<PathBuf, Box<dyn Error>> {
    fs::create_dir_all(directory())?;
    let path = directory().join(labels.file).with_extension("svg");
    {
        let (width, height) = PANEL_SIZE;
        let area = SVGBackend::new(&path, (width, height * panels as u32)).into_drawing_area();
        area.fill(&WHITE)?;
        contents(&area)?;
        area.present()?;
    }
    Ok(path)
}

/// Draws the axes and their labels.
fn chart<'a, 'b>(
    labels: &Labels<'_>,
    area: &'a Area<'b>,
    width: Range<f64>,
    top: f64,
) -> Result<Chart<'a, 'b>, Box<dyn Error>>
where
    'b: 'a,
{
    // An axis needs a length even if all figures are zero.
    let top = if top > 0.0 { top * 1.1 } else { 1.0 };
    let mut chart = ChartBuilder::on(area)
        .caption(labels.title, ("sans-serif", 18))
        .margin(12)
        .margin_right(28)
        .x_label_area_size(44)
        .y_label_area_size(78)
        .build_cartesian_2d(width, 0.0..top)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc(labels.x)
        .y_desc(labels.y)
        .x_labels(9)
        .y_labels(7)
        .x_label_formatter(&format_figure)
        .y_label_formatter(&format_figure)
        .label_style(("sans-serif", 13))
        .axis_desc_style(("sans-serif", 14))
        .draw()?;
    Ok(chart)
}

/// The range from the smallest to the largest figure.
fn range(figures: impl Iterator<Item = f64> + Clone) -> Range<f64> {
    let least = figures.clone().fold(f64::MAX, f64::min);
    least..figures.fold(f64::MIN, f64::max)
}

/// Formats a figure without trailing zeros and with thousands separators.
fn format_figure(figure: &f64) -> String {
    let rounded = (figure * 1000.0).round() / 1000.0;
    if rounded.fract() != 0.0 {
        return rounded.to_string();
    }
    let digits = rounded.abs().to_string();
    let mut text = if rounded < 0.0 { "-" } else { "" }.to_owned();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
