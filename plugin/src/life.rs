//! The life of a target: declared, waiting for base bdevs, being opened, open, closing, and waiting again.
//!
//! A target is declared by RPC; it opens at once or, if it may wait, when its base bdevs appear. When one of
//! them goes it closes. It stays declared, and opens again when the bdev comes back.

use crate::bases::BaseClosed;
use bdev::errno::Errno;
use futures::channel::oneshot;
use rpc::RpcError;
use spdk::base::Event;
use std::rc::Rc;

enum State<O> {
    Waiting,
    Opening,
    Open(Rc<O>),
    Closing,
}

/// Those who wait while a target is being opened; they go on when this is dropped.
#[must_use]
pub struct Waiters(#[expect(dead_code, reason = "dropped")] Vec<oneshot::Sender<()>>);

/// Where a target, which is an `O` while it is open, is in its life.
pub struct Life<O> {
    state: State<O>,
    /// Why it is not open, if an attempt failed or a base bdev went.
    failure: Option<String>,
    /// It is to close, or not to be opened after all.
    closing: bool,
    bases: Vec<BaseClosed>,
    waiters: Vec<oneshot::Sender<()>>,
}

impl<O> Default for Life<O> {
    /// Waiting.
    fn default() -> Self {
        Life {
            state: State::Waiting,
            failure: None,
            closing: false,
            bases: Vec::new(),
            waiters: Vec::new(),
        }
    }
}

impl<O> Life<O> {
    /// Its state in a word.
    pub fn word(&self) -> &'static str {
        match self.state {
            State::Waiting => "waiting",
            State::Opening => "opening",
            State::Open(_) if self.closing => "closing",
            State::Open(_) => "open",
            State::Closing => "closing",
        }
    }

    /// Why it is not open, if an attempt failed or a base bdev went; why it did not close well.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Waiting for base bdevs, or for another attempt.
    pub fn is_waiting(&self) -> bool {
        matches!(self.state, State::Waiting)
    }

    /// Being opened.
    pub fn is_opening(&self) -> bool {
        matches!(self.state, State::Opening)
    }

    /// It is to close, or not to be opened after all.
    pub fn is_to_close(&self) -> bool {
        self.closing
    }

    /// The open target, also when it is to close.
    pub fn target(&self) -> Option<&Rc<O>> {
        match &self.state {
            State::Open(open) => Some(open),
            _ => None,
        }
    }

    /// The open target, for use.
    pub fn open(&self) -> Option<&Rc<O>> {
        self.target().filter(|_| !self.closing)
    }

    /// The open target, or why there is none. `whose`: "pool 'x'"; `waits_for`: its base bdevs.
    pub fn use_open(&self, whose: &str, waits_for: &str) -> Result<Rc<O>, RpcError> {
        match (&self.state, self.open()) {
            (_, Some(open)) => Ok(open.clone()),
            (State::Waiting, _) => Err(RpcError::new(
                Errno::ENODEV,
                format!(
                    "{whose} is waiting for {waits_for}{}",
                    self.failure
                        .as_ref()
                        .map_or_else(String::new, |why| format!("; it last failed: {why}"))
                ),
            )),
            _ => Err(busy(whose)),
        }
    }

    /// Begins to open it. False: it is not waiting, and left alone.
    pub fn begin_opening(&mut self) -> bool {
        if !self.is_waiting() {
            return false;
        }
        self.state = State::Opening;
        self.closing = false;
        self.failure = None;
        true
    }

    /// It is open; unless it is to close already.
    pub fn opened(&mut self, open: Rc<O>, bases: Vec<BaseClosed>) -> Waiters {
        self.state = State::Open(open);
        self.bases = bases;
        Waiters(std::mem::take(&mut self.waiters))
    }

    /// It could not be opened. That a base bdev went meanwhile says more than `why`.
    pub fn not_opened(&mut self, why: &str) -> Waiters {
        self.failure.get_or_insert_with(|| why.to_owned());
        self.state = State::Waiting;
        self.closing = false;
        Waiters(std::mem::take(&mut self.waiters))
    }

    /// Resolves when it is no longer being opened; none: it is not.
    pub fn wait_opening(&mut self) -> Option<oneshot::Receiver<()>> {
        self.is_opening().then(|| {
            let (tx, rx) = oneshot::channel();
            self.waiters.push(tx);
            rx
        })
    }

    /// It is to close, for this reason if there is one.
    pub fn set_closing(&mut self, why: Option<String>) {
        self.closing = true;
        self.failure = why;
    }

    /// It is not to be opened after all.
    pub fn note_closing(&mut self) {
        self.closing = true;
    }

    /// A base bdev is going: it is to close until that is back. False: that is known, or of no account.
    pub fn base_removed(&mut self, whose: &str, bdev: &str) -> bool {
        if self.closing || matches!(self.state, State::Waiting | State::Closing) {
            return false;
        }
        self.set_closing(Some(format!(
            "{whose}: bdev '{bdev}' was removed; it opens again when that is back"
        )));
        log::warn!("{whose}: bdev '{bdev}' is being removed; it closes until that is back");
        true
    }

    /// Begins to close it: what was open and its base bdevs. None: it was not open, and is left alone.
    pub fn begin_closing(&mut self) -> Option<(Rc<O>, Vec<BaseClosed>)> {
        match std::mem::replace(&mut self.state, State::Closing) {
            State::Open(open) => Some((open, std::mem::take(&mut self.bases))),
            other => {
                self.state = other;
                None
            }
        }
    }

    /// What has been opened so far is being closed.
    pub fn give_up(&mut self) {
        self.state = State::Closing;
    }

    /// It is closed, and waits. `why`: it did not close well.
    pub fn closed(&mut self, why: Option<String>) {
        self.state = State::Waiting;
        self.closing = false;
        if why.is_some() {
            self.failure = why;
        }
    }
}

/// The refusal of a target on its way.
pub fn busy(whose: &str) -> RpcError {
    RpcError::new(
        Errno::EBUSY,
        format!("{whose} is being opened or closed; try again"),
    )
}

/// The refusal of a target whose base bdev went before it was open.
pub fn removed_meanwhile(whose: &str) -> RpcError {
    RpcError::new(
        Errno::ENODEV,
        format!("{whose}: a base bdev was removed while it was being opened"),
    )
}

/// Follows a base bdev: what `owner` does when it goes, and when it has another size, runs in a task.
pub fn follow<R: 'static, A, B>(
    owner: &Rc<R>,
    removed: impl Fn(Rc<R>) -> A + 'static,
    resized: impl Fn(Rc<R>) -> B + 'static,
) -> impl Fn(Event) + 'static
where
    A: Future<Output = ()> + 'static,
    B: Future<Output = ()> + 'static,
{
    let owner = Rc::downgrade(owner);
    move |event| {
        let Some(owner) = owner.upgrade() else {
            return;
        };
        match event {
            Event::Remove => spdk::executor::spawn(removed(owner)),
            Event::Resize => spdk::executor::spawn(resized(owner)),
            Event::Other => true,
        };
    }
}
