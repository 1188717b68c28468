//! Captures the log lines of a test's own thread.
#![allow(dead_code)] // every test binary uses its own part of this

use std::cell::RefCell;
use std::io::{self, Write};
use std::sync::Once;

use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

thread_local! {
    static LINES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Captures what this thread logs.
///
/// One subscriber serves the whole process: with a subscriber per thread, `tracing` may cache a
/// callsite as disabled because of another thread's subscriber.
pub(crate) struct Logs(());

impl Logs {
    pub(crate) fn keep() -> Self {
        static SUBSCRIBER: Once = Once::new();

        SUBSCRIBER.call_once(|| {
            // hyper and h2 log every frame at lower levels.
            let levels = Targets::new()
                .with_default(LevelFilter::WARN)
                .with_target("tower_ws_liveness", LevelFilter::TRACE);
            let lines = tracing_subscriber::fmt::layer()
                .with_ansi(false)
                .with_writer(|| ThisThread)
                .with_filter(levels);
            tracing_subscriber::registry().with(lines).init();
        });
        LINES.with_borrow_mut(Vec::clear);
        Self(())
    }

    /// The warnings so far, in order.
    pub(crate) fn warnings(&self) -> Vec<String> {
        self.lines_of("WARN")
    }

    /// The errors so far, in order.
    pub(crate) fn errors(&self) -> Vec<String> {
        self.lines_of("ERROR")
    }

    /// The lines so far of all levels, in order.
    pub(crate) fn lines(&self) -> Vec<String> {
        let text = LINES.with_borrow(|bytes| String::from_utf8(bytes.clone()).unwrap());
        text.lines().map(str::to_owned).collect()
    }

    fn lines_of(&self, level: &str) -> Vec<String> {
        let mut lines = self.lines();
        lines.retain(|line| line.contains(level));
        lines
    }

    /// The warnings, without those about slow hooks and maps: on a loaded machine a panic that
    /// prints its backtrace is slow.
    pub(crate) fn panics(&self) -> Vec<String> {
        let mut warnings = self.warnings();
        warnings.retain(|line| !line.contains("slow at"));
        warnings
    }
}

struct ThisThread;

impl Write for ThisThread {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LINES.with_borrow_mut(|lines| lines.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
