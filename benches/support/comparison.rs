//! Figures of several servers in alternating rounds, and their ratios per round.

use std::error::Error;

use super::options::Kind;
use super::spread::Spread;

/// `N` figures per server and round.
pub(crate) struct Comparison<const N: usize> {
    columns: [&'static str; N],
    servers: Vec<(Kind, Vec<[f64; N]>)>,
}

impl<const N: usize> Comparison<N> {
    /// Measures the servers in turn, forwards in one round and backwards in the next, so that slow
    /// changes of the machine's load favour none of them. `measure` gets an index into `servers`.
    pub(crate) fn take(
        columns: [&'static str; N],
        servers: &[Kind],
        rounds: usize,
        mut measure: impl FnMut(usize) -> Result<[f64; N], Box<dyn Error>>,
    ) -> Result<Self, Box<dyn Error>> {
        let mut comparison = Self {
            columns,
            servers: servers.iter().map(|&kind| (kind, Vec::new())).collect(),
        };
        for round in 0..rounds {
            for position in 0..servers.len() {
                let server = match round % 2 {
                    0 => position,
                    _ => servers.len() - 1 - position,
                };
                comparison.servers[server].1.push(measure(server)?);
            }
        }
        Ok(comparison)
    }

    /// A column of `server` divided by the same column of `base`, round by round.
    pub(crate) fn ratio(&self, column: usize, server: Kind, base: Kind) -> Spread {
        Spread::of_ratios(&self.column(column, server), &self.column(column, base))
    }

    /// A column of `server` minus the same column of `base`, round by round.
    pub(crate) fn difference(&self, column: usize, server: Kind, base: Kind) -> Spread {
        let base = self.column(column, base);
        let server = self.column(column, server);
        Spread::of(server.iter().zip(&base).map(|(server, base)| server - base))
    }

    /// Prints a table with one row per server and one per pair in `ratios`.
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

    /// Prints a column of `Layered` divided by that of each rival, and which of the two is ahead.
    pub(crate) fn print_against_rivals(&self, what: &str, column: usize, better: Better) {
        for rival in Kind::RIVALS {
            better.judge(what, rival, self.ratio(column, Kind::Layered, rival));
        }
    }

    fn column(&self, column: usize, server: Kind) -> Vec<f64> {
        let found = self.servers.iter().find(|(kind, _)| *kind == server);
        let (_, rounds) = found.expect("the server was measured");
        rounds.iter().map(|figures| figures[column]).collect()
    }
}

fn print_row<const N: usize>(name: &str, cell: impl Fn(usize) -> String) {
    let cells: [_; N] = std::array::from_fn(cell);
    println!("| {name} | {} |", cells.join(" | "));
}

/// Which of two figures is the better one.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Better {
    Less,
    More,
}

impl Better {
    /// Prints the layers' `ratios` to a rival, and whether their median is in the layers' favour.
    pub(crate) fn judge(self, what: &str, rival: Kind, ratios: Spread) {
        let ahead = match self {
            Self::Less => ratios.median <= 1.0,
            Self::More => ratios.median >= 1.0,
        };
        let verdict = if ahead { "do not lose" } else { "lose" };
        let rival = rival.name();
        println!("- {what}, layered / {rival}: {ratios:.3}; the layers {verdict}");
    }
}

/// A limit that a figure must meet.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bar {
    AtLeast(f64),
    AtMost(f64),
}

impl Bar {
    /// Prints whether the median of `figures` meets the limit.
    pub(crate) fn judge(self, what: &str, figures: Spread) {
        let (met, bar) = match self {
            Self::AtLeast(bar) => (figures.median >= bar, format!("at least {bar}")),
            Self::AtMost(bar) => (figures.median <= bar, format!("at most {bar}")),
        };
        let verdict = if met { "met" } else { "missed" };
        println!("- {what}: {figures:.3}; the bar is {bar}: {verdict}");
    }
}
