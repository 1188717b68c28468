//! Servers side by side: what was measured of each in every round, and how they compare, round by
//! round.

use std::error::Error;

use super::options::Kind;
use super::spread::Spread;

/// `N` figures of each server in each round.
pub(crate) struct Comparison<const N: usize> {
    columns: [&'static str; N],
    servers: Vec<(Kind, Vec<[f64; N]>)>,
}

impl<const N: usize> Comparison<N> {
    /// Measures the servers one after the other, forwards in one round and backwards in the next: what
    /// changes slowly around them favours none. `measure` is told which of `servers` it is.
    pub(crate) fn take(
        columns: [&'static str; N],
        servers: &[Kind],
        rounds: usize,
        mut measure: impl FnMut(usize) -> Result<[f64; N], Box<dyn Error>>,
    ) -> Result<Self, Box<dyn Error>> {
        let mut taken = Self {
            columns,
            servers: servers.iter().map(|&kind| (kind, Vec::new())).collect(),
        };
        for round in 0..rounds {
            for place in 0..servers.len() {
                let server = match round % 2 {
                    0 => place,
                    _ => servers.len() - 1 - place,
                };
                taken.servers[server].1.push(measure(server)?);
            }
        }
        Ok(taken)
    }

    /// The figures of a column, of `server` divided by those of `base`.
    pub(crate) fn ratio(&self, column: usize, server: Kind, base: Kind) -> Spread {
        Spread::of_ratios(&self.column(column, server), &self.column(column, base))
    }

    /// The figures of a column, of `server` less those of `base`.
    pub(crate) fn difference(&self, column: usize, server: Kind, base: Kind) -> Spread {
        let base = self.column(column, base);
        let server = self.column(column, server);
        Spread::of(server.iter().zip(&base).map(|(server, base)| server - base))
    }

    /// Prints a table: a row for each server, and one for each of `ratios`.
    pub(crate) fn print(&self, ratios: &[(Kind, Kind)]) {
        println!("| server | {} |", self.columns.join(" | "));
        println!("|---|{}", "---|".repeat(N));
        for &(kind, _) in &self.servers {
            print_row::<N>(kind.name(), |column| {
                let spread = Spread::of(self.column(column, kind));
                let places = if spread.median < 100.0 { 2 } else { 0 };
                format!("{spread:.places$}")
            });
        }
        for &(server, base) in ratios {
            let name = format!("{} / {}", server.name(), base.name());
            print_row::<N>(&name, |column| {
                format!("{:.3}", self.ratio(column, server, base))
            });
        }
        println!();
    }

    fn column(&self, column: usize, server: Kind) -> Vec<f64> {
        let found = self.servers.iter().find(|(kind, _)| *kind == server);
        let (_, rounds) = found.expect("only what was measured is compared");
        rounds.iter().map(|figures| figures[column]).collect()
    }
}

fn print_row<const N: usize>(name: &str, cell: impl Fn(usize) -> String) {
    let cells: [_; N] = std::array::from_fn(cell);
    println!("| {name} | {} |", cells.join(" | "));
}

/// What a figure has to be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bar {
    AtLeast(f64),
    AtMost(f64),
}

impl Bar {
    /// Prints whether the median of `figures` meets it.
    pub(crate) fn judge(self, what: &str, figures: Spread) {
        let (met, bar) = match self {
            Self::AtLeast(bar) => (figures.median >= bar, format!("at least {bar}")),
            Self::AtMost(bar) => (figures.median <= bar, format!("at most {bar}")),
        };
        let verdict = if met { "met" } else { "missed" };
        println!("- {what}: {figures:.3}; the bar is {bar}: {verdict}");
    }
}
