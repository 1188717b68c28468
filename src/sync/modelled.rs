//! The runtime of loom models: loom's locks and threads, and substitutes for tokio.
//!
//! All data that two threads of a model share is behind one of loom's locks, even where no lock is
//! needed: loom explores interleavings only at accesses to its own types.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::mem;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use loom::model::Builder;
use loom::sync::Condvar;
pub(crate) use loom::sync::atomic::AtomicBool;
pub(crate) use loom::sync::{Mutex, MutexGuard};
use loom::thread::JoinHandle;
pub(crate) use loom::thread::{ThreadId, current as current_thread};
use tokio::time::Instant;

/// The stack size of a thread. A failing model prints its backtrace on it.
const STACK_BYTES: usize = 512 * 1024;

/// The runtime of one run of a model.
struct ModelRuntime {
    timers: Mutex<Vec<(Instant, Waker)>>,
    /// The runtime is shut down: its pending tasks are dropped.
    shut_down: Mutex<bool>,
    /// The wakers of all tasks that were ever spawned.
    tasks: Mutex<Vec<Waker>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

thread_local! {
    /// Shared by all threads of a model, since they run on one OS thread.
    static MODEL_RUNTIME: RefCell<Option<Arc<ModelRuntime>>> = const { RefCell::new(None) };
}

/// Runs `model` in every interleaving with at most `preemptions` preemptions of a runnable thread.
///
/// Only [`advance`] moves time. A run ends when all its threads and tasks have ended: one that
/// waits forever is a failure, which loom reports as a deadlock.
pub(crate) fn check(name: &str, preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let _entered = runtime.enter();
    let mut builder = Builder::new();
    // The environment variable LOOM_MAX_PREEMPTIONS takes precedence.
    builder.preemption_bound.get_or_insert(preemptions);
    builder.max_branches = 20_000;
    let runs = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&runs);
    let started = std::time::Instant::now();
    builder.check(move || {
        counter.fetch_add(1, Ordering::Relaxed);
        // A model must be deterministic for each interleaving.
        fastrand::seed(1);
        let model_runtime = ModelRuntime {
            timers: Mutex::default(),
            shut_down: Mutex::default(),
            tasks: Mutex::default(),
            threads: Mutex::default(),
        };
        MODEL_RUNTIME.replace(Some(Arc::new(model_runtime)));
        model();
        all_done();
        MODEL_RUNTIME.take();
    });
    let runs = runs.load(Ordering::Relaxed);
    println!("{name}: {runs} runs in {:.1?}", started.elapsed());
}

fn model_runtime() -> Arc<ModelRuntime> {
    MODEL_RUNTIME.with_borrow(|model_runtime| {
        Arc::clone(model_runtime.as_ref().expect("a model is running"))
    })
}

/// Starts a thread of the model.
pub(crate) fn thread(run: impl FnOnce() + Send + 'static) {
    let thread = loom::thread::Builder::new()
        .stack_size(STACK_BYTES)
        .spawn(run)
        .unwrap();
    model_runtime().threads.lock().unwrap().push(thread);
}

/// Waits until all threads and tasks have ended.
pub(crate) fn all_done() {
    loop {
        let thread = model_runtime().threads.lock().unwrap().pop();
        match thread {
            Some(thread) => thread.join().unwrap(),
            None => return,
        }
    }
}

/// How many tasks were spawned so far.
pub(crate) fn spawned() -> usize {
    model_runtime().tasks.lock().unwrap().len()
}

/// Calls `act`: all threads of a model are in the context of one runtime already.
pub(crate) fn in_runtime<R>(_: &tokio::runtime::Handle, act: impl FnOnce() -> R) -> R {
    act()
}

/// Runs a task on its own thread. The task is dropped, finished or not, when the model's runtime is
/// shut down.
pub(crate) fn spawn(_: &tokio::runtime::Handle, task: impl Future<Output = ()> + Send + 'static) {
    let parker = Arc::new(Parker::default());
    let waker = Waker::from(Arc::clone(&parker));
    model_runtime().tasks.lock().unwrap().push(waker);
    thread(move || {
        let mut task = pin!(task);
        parker.block_on(poll_fn(|cx| {
            if *model_runtime().shut_down.lock().unwrap() {
                return Poll::Ready(());
            }
            task.as_mut().poll(cx).map(drop)
        }));
    });
}

/// Shuts the runtime down.
pub(crate) fn shut_down() {
    let model_runtime = model_runtime();
    *model_runtime.shut_down.lock().unwrap() = true;
    let tasks = model_runtime.tasks.lock().unwrap().clone();
    tasks.into_iter().for_each(Waker::wake);
}

/// Waits for `future`.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    Arc::new(Parker::default()).block_on(future)
}

#[derive(Default)]
struct Parker {
    woken: Mutex<bool>,
    wake: Condvar,
}

impl Parker {
    fn block_on<F: Future>(self: &Arc<Self>, future: F) -> F::Output {
        let mut future = pin!(future);
        let waker = Waker::from(Arc::clone(self));
        loop {
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return output;
            }
            let mut woken = self.woken.lock().unwrap();
            while !mem::take(&mut *woken) {
                woken = self.wake.wait(woken).unwrap();
            }
        }
    }
}

impl Wake for Parker {
    fn wake(self: Arc<Self>) {
        *self.woken.lock().unwrap() = true;
        self.wake.notify_one();
    }
}

/// Advances time, and wakes the tasks whose timers expire.
pub(crate) fn advance(time: Duration) {
    let model_runtime = model_runtime();
    let mut timers = model_runtime.timers.lock().unwrap();
    // tokio's future advances the clock in its first poll.
    let _ = pin!(tokio::time::advance(time)).poll(&mut Context::from_waker(Waker::noop()));
    let now = Instant::now();
    let (due, later) = timers.drain(..).partition(|(at, _)| *at <= now);
    *timers = later;
    drop(timers);
    let due: Vec<(Instant, Waker)> = due;
    due.into_iter().for_each(|(_, waker)| waker.wake());
}

/// Replaces tokio's `Sleep`, whose timers are fired by tokio's own scheduler.
pub(crate) struct Sleep {
    deadline: Instant,
}

pub(crate) fn sleep_until(deadline: Instant) -> Sleep {
    Sleep { deadline }
}

impl Sleep {
    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    pub(crate) fn reset(mut self: Pin<&mut Self>, deadline: Instant) {
        self.deadline = deadline;
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let model_runtime = model_runtime();
        let mut timers = model_runtime.timers.lock().unwrap();
        timers.retain(|(_, waker)| !waker.will_wake(cx.waker()));
        if Instant::now() >= self.deadline {
            return Poll::Ready(());
        }
        timers.push((self.deadline, cx.waker().clone()));
        Poll::Pending
    }
}

/// Replaces the part of tokio's `Notify` that the crate uses: a `notified` future is completed by
/// the next `notify_waiters` after its creation, whether or not it was polled.
pub(crate) struct Notify {
    state: Mutex<(u64, Vec<Waker>)>,
}

impl Notify {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::default(),
        }
    }

    pub(crate) fn notified(&self) -> impl Future<Output = ()> {
        let seen = self.state.lock().unwrap().0;
        poll_fn(move |cx| {
            let mut state = self.state.lock().unwrap();
            if state.0 != seen {
                return Poll::Ready(());
            }
            state.1.push(cx.waker().clone());
            Poll::Pending
        })
    }

    pub(crate) fn notify_waiters(&self) {
        let waiting = {
            let mut state = self.state.lock().unwrap();
            state.0 += 1;
            mem::take(&mut state.1)
        };
        waiting.into_iter().for_each(Waker::wake);
    }
}

/// Wraps std's `OnceLock` so that loom explores reads both before and after the write.
pub(crate) struct OnceLock<T> {
    written: Mutex<bool>,
    value: std::sync::OnceLock<T>,
}

impl<T> OnceLock<T> {
    pub(crate) fn new() -> Self {
        Self {
            written: Mutex::default(),
            value: std::sync::OnceLock::new(),
        }
    }

    pub(crate) fn get(&self) -> Option<&T> {
        self.written.lock().unwrap().then(|| self.value.get())?
    }

    pub(crate) fn set(&self, value: T) -> Result<(), T> {
        let mut written = self.written.lock().unwrap();
        self.value.set(value).inspect(|()| *written = true)
    }
}
