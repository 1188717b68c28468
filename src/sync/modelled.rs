//! What the models run on: loom's locks and threads, and stand-ins for the parts of tokio that
//! loom knows nothing of.
//!
//! Whatever two threads of a model share lies behind one of loom's locks, also where it need not
//! for its own sake: loom tries another order of events only where it sees two of them meet.

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

/// A thread's stack. A failing model prints a backtrace on it.
const STACK: usize = 512 * 1024;

/// The runtime of one run of a model.
struct World {
    timers: Mutex<Vec<(Instant, Waker)>>,
    /// The runtime is shut down: its tasks are dropped where they wait.
    shut_down: Mutex<bool>,
    /// All tasks that were ever spawned.
    tasks: Mutex<Vec<Waker>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

thread_local! {
    /// All threads of a model are one thread of the operating system.
    static WORLD: RefCell<Option<Arc<World>>> = const { RefCell::new(None) };
}

/// Runs `model` in every order of events in which at most `preemptions` times a thread is
/// interrupted that could have gone on.
///
/// Time stands still but for [`advance`]. A run ends when all its threads and tasks have: one that
/// waits for what never comes is a failure, which loom calls a deadlock.
pub(crate) fn check(name: &str, preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let _entered = runtime.enter();
    let mut builder = Builder::new();
    // LOOM_MAX_PREEMPTIONS goes before.
    builder.preemption_bound.get_or_insert(preemptions);
    builder.max_branches = 20_000;
    let runs = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&runs);
    let begun = std::time::Instant::now();
    builder.check(move || {
        counter.fetch_add(1, Ordering::Relaxed);
        // A model must do the same again in the same order of events.
        fastrand::seed(1);
        let world = World {
            timers: Mutex::default(),
            shut_down: Mutex::default(),
            tasks: Mutex::default(),
            threads: Mutex::default(),
        };
        WORLD.replace(Some(Arc::new(world)));
        model();
        all_done();
        WORLD.take();
    });
    let runs = runs.load(Ordering::Relaxed);
    println!("{name}: {runs} runs in {:.1?}", begun.elapsed());
}

fn world() -> Arc<World> {
    WORLD.with_borrow(|world| Arc::clone(world.as_ref().expect("a model is running")))
}

/// Starts a thread of the model.
pub(crate) fn thread(run: impl FnOnce() + Send + 'static) {
    let thread = loom::thread::Builder::new()
        .stack_size(STACK)
        .spawn(run)
        .unwrap();
    world().threads.lock().unwrap().push(thread);
}

/// Waits until all threads and tasks have ended.
pub(crate) fn all_done() {
    loop {
        let thread = world().threads.lock().unwrap().pop();
        match thread {
            Some(thread) => thread.join().unwrap(),
            None => return,
        }
    }
}

/// How many tasks were spawned so far.
pub(crate) fn spawned() -> usize {
    world().tasks.lock().unwrap().len()
}

/// Just calls `act`: all threads of a model are in the context of one runtime.
pub(crate) fn in_runtime<R>(_: &tokio::runtime::Handle, act: impl FnOnce() -> R) -> R {
    act()
}

/// A task, on a thread of its own. It is dropped half done when the runtime is shut down.
pub(crate) fn spawn(task: impl Future + Send + 'static) {
    let parker = Arc::new(Parker::default());
    let waker = Waker::from(Arc::clone(&parker));
    world().tasks.lock().unwrap().push(waker);
    thread(move || {
        let mut task = pin!(task);
        parker.block_on(poll_fn(|cx| {
            if *world().shut_down.lock().unwrap() {
                return Poll::Ready(());
            }
            task.as_mut().poll(cx).map(drop)
        }));
    });
}

/// Shuts the runtime down.
pub(crate) fn shut_down() {
    let world = world();
    *world.shut_down.lock().unwrap() = true;
    let tasks = world.tasks.lock().unwrap().clone();
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

/// DeadlineMove time on, and wakes whoever slept until then.
pub(crate) fn advance(time: Duration) {
    let world = world();
    let mut timers = world.timers.lock().unwrap();
    // The clock is set before the future waits for anything.
    let _ = pin!(tokio::time::advance(time)).poll(&mut Context::from_waker(Waker::noop()));
    let now = Instant::now();
    let (due, later) = timers.drain(..).partition(|(at, _)| *at <= now);
    *timers = later;
    drop(timers);
    let due: Vec<(Instant, Waker)> = due;
    due.into_iter().for_each(|(_, waker)| waker.wake());
}

/// Stands in for tokio's, whose timers fire from within its own scheduler.
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
        let world = world();
        let mut timers = world.timers.lock().unwrap();
        timers.retain(|(_, waker)| !waker.will_wake(cx.waker()));
        if Instant::now() >= self.deadline {
            return Poll::Ready(());
        }
        timers.push((self.deadline, cx.waker().clone()));
        Poll::Pending
    }
}

/// Stands in for tokio's, as far as it is used here: what waits is woken by the next
/// `notify_waiters` after its `notified`, polled or not.
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

/// std's, where loom sees who reads before and who after the write.
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
