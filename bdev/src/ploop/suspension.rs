//! All I/O waits: for a moment, while the owner changes the chain, or until the user resumes it.

use super::error::PloopError;
use super::map::HELD;
use super::owner::Ploop;
use tokio::sync::OwnedRwLockWriteGuard;

impl Ploop {
    /// Whether it is suspended.
    pub fn is_suspended(&self) -> bool {
        self.suspended.borrow().is_some()
    }

    /// All I/O waits, and what was under way is over, until the guard is gone; then the caller calls
    /// [`Ploop::serve_again`]. None: it is suspended anyway.
    pub(super) async fn hold(&self) -> Option<OwnedRwLockWriteGuard<()>> {
        if self.is_suspended() {
            return None;
        }
        self.dev.set_state(HELD, true);
        let guard = self.service.clone().write_owned().await;
        self.channels.barrier().await;
        Some(guard)
    }

    pub(super) fn serve_again(&self, guard: Option<OwnedRwLockWriteGuard<()>>) {
        if guard.is_some() {
            self.dev.set_state(HELD, false);
        }
    }

    /// All I/O waits until [`Ploop::resume`]; what was acknowledged before is durable if this succeeds.
    pub async fn suspend(&self) -> Result<(), PloopError> {
        let _message = self.begin_message()?;
        let Some(guard) = self.hold().await else {
            return Ok(());
        };
        let flushed = self.flush().await;
        match flushed {
            Ok(()) if self.ending.get() => {
                self.serve_again(Some(guard));
                Err(PloopError::Closed(self.name()))
            }
            Ok(()) => {
                *self.suspended.borrow_mut() = Some(guard);
                Ok(())
            }
            Err(errno) => {
                self.serve_again(Some(guard));
                Err(self.device_error("flushing")(errno))
            }
        }
    }

    /// I/O goes on. Error: EBUSY while that is not wanted (`set_noresume`).
    pub fn resume(&self) -> Result<(), PloopError> {
        let _message = self.begin_message()?;
        if self.noresume.get() {
            return Err(self.busy("resuming is refused until set_noresume 0"));
        }
        let guard = self.suspended.take();
        self.serve_again(guard);
        Ok(())
    }

    /// The target is about to be closed, as soon as no I/O is under way any more: a merge, a push backup and
    /// a suspension end, so that what waits can go on, and no message is taken any more.
    pub fn let_go(&self) {
        self.ending.set(true);
        self.cancel_merge();
        self.release_all();
    }

    /// Nothing waits any more for a push backup's reader or for a resumption.
    pub(super) fn release_all(&self) {
        if let Some(backup) = self.backup.take() {
            self.end_backup(&backup);
        }
        let guard = self.suspended.take();
        self.serve_again(guard);
    }
}
