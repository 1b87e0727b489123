//! Long work on one core, done in turns: what a core serves beside it waits no longer than one of them.

use std::task::Poll;

/// Lets other tasks of this core run first.
pub async fn yield_now() {
    let mut yielded = false;
    futures::future::poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
