//! Thin bdevs that wait, and then lead to another thin device: of the same pool or of another one.
//!
//! As device-mapper's suspend, load and resume: who switches a bdev suspends it, brings the other device to
//! the same contents, and names it. The bdev, its name and who has it open stay. A suspension ends by itself when its
//! time is over, so that a bdev does not wait for somebody who was killed; its number says whether it is still the
//! same one.

use crate::backend::in_pool;
use crate::gate::{Gate, Way};
use crate::registry::{OpenPool, Registry, ThinEntry};
use crate::thins::origin_device;
use bdev::errno::Errno;
use bdev::thin::{PoolError, ThinDev};
use futures::future::{Either, select};
use rpc::RpcError;
use rpc::dispatch::Answer;
use rpc::params::{ThinActivate, ThinResume, ThinSuspend, ThinSwitch};
use serde_json::json;
use spdk::executor::{sleep, spawn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often parked I/O is asked for. There is no message when it is over, because nothing else waits for it.
const LOOK: Duration = Duration::from_micros(500);

static NEXT: AtomicU64 = AtomicU64::new(1);

/// Why a bdev's I/O waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suspension {
    /// Until it is resumed or switched, or its time is over.
    Held(u64),
    /// It is being switched.
    Switching(u64),
}

fn not_there(name: &str) -> RpcError {
    RpcError::new(
        Errno::ENODEV,
        format!("there is no thin bdev '{name}' in service; see thin_list"),
    )
}

fn no_longer(name: &str) -> RpcError {
    RpcError::new(
        Errno::ESTALE,
        format!(
            "bdev '{name}' is not suspended any more: its time was over; thin_suspend it again"
        ),
    )
}

impl Registry {
    /// What a thin bdev in service has.
    fn in_service<R>(
        &self,
        name: &str,
        then: impl FnOnce(&mut ThinEntry, Arc<Gate>) -> Result<R, RpcError>,
    ) -> Result<R, RpcError> {
        let mut thins = self.thins.borrow_mut();
        let found = thins.get_mut(name).filter(|thin| thin.vbdev.is_some());
        let thin = found.ok_or_else(|| not_there(name))?;
        let gate = thin.gate.clone().ok_or_else(|| not_there(name))?;
        then(thin, gate)
    }

    /// New I/O of a thin bdev waits; completes when what was under way is over.
    pub async fn suspend_thin(self: &Rc<Self>, params: ThinSuspend) -> Answer {
        let (name, began) = (&params.bdev_name, Instant::now());
        let limit = Duration::from_millis(params.timeout_ms);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let (gate, pool) = self.in_service(name, |thin, gate| {
            if thin.suspension.is_some() {
                let text = format!("bdev '{name}' is suspended already; thin_resume it");
                return Err(RpcError::new(Errno::EBUSY, text));
            }
            thin.suspension = Some(Suspension::Held(number));
            Ok((gate, thin.params.pool.clone()))
        })?;
        let open = self.open_pool_of(&pool);
        gate.hold().await;
        let drained = match open {
            Some(open) => drained(&gate, &open, began + limit).await,
            None => true,
        };
        if !drained {
            self.end_suspension(name, number).await;
            return Err(RpcError::new(
                Errno::ETIMEDOUT,
                format!(
                    "bdev '{name}': I/O under way was not over after {} ms, so it goes on; give a longer timeout_ms",
                    params.timeout_ms
                ),
            ));
        }
        // It may have been resumed or deactivated meanwhile.
        self.check_suspended(name, number)?;
        let (registry, name) = (Rc::downgrade(self), name.clone());
        let left = limit.saturating_sub(began.elapsed());
        spawn(async move {
            sleep(left).await;
            if let Some(registry) = registry.upgrade()
                && registry.end_suspension(&name, number).await
            {
                log::warn!("bdev '{name}' was suspended for {limit:?}, and goes on as before");
            }
        });
        Ok(json!({ "bdev_name": params.bdev_name, "suspension": number }))
    }

    /// Refuses what is only for a suspension that goes on.
    pub fn check_suspended(&self, name: &str, number: u64) -> Result<(), RpcError> {
        self.in_service(name, |thin, _| {
            match thin.suspension == Some(Suspension::Held(number)) {
                true => Ok(()),
                false => Err(no_longer(name)),
            }
        })
    }

    /// Ends a suspension. False: it had ended.
    async fn end_suspension(&self, name: &str, number: u64) -> bool {
        let ended = self.in_service(name, |thin, gate| {
            let is_it = thin.suspension == Some(Suspension::Held(number));
            Ok(is_it.then(|| {
                thin.suspension = None;
                gate
            }))
        });
        match ended {
            Ok(Some(gate)) => {
                gate.open().await;
                true
            }
            _ => false,
        }
    }

    /// A suspended thin bdev goes on as before.
    pub async fn resume_thin(&self, params: ThinResume) -> Answer {
        let name = &params.bdev_name;
        let gate = self.in_service(name, |thin, gate| match thin.suspension {
            Some(Suspension::Held(_)) => {
                thin.suspension = None;
                Ok(gate)
            }
            Some(Suspension::Switching(_)) => Err(RpcError::new(
                Errno::EBUSY,
                format!("bdev '{name}' is being switched, and goes on after that"),
            )),
            None => Err(RpcError::new(
                Errno::EINVAL,
                format!("bdev '{name}' is not suspended"),
            )),
        })?;
        gate.open().await;
        Ok(json!(true))
    }

    /// A suspended thin bdev becomes that of another thin device, and goes on.
    pub async fn switch_thin(self: &Rc<Self>, params: ThinSwitch) -> Answer {
        let (name, number) = (&params.bdev_name, params.suspension);
        let switching = Some(Suspension::Switching(number));
        let (gate, old) = self.in_service(name, |thin, gate| match thin.suspension {
            Some(Suspension::Held(held)) if held == number => {
                thin.suspension = switching;
                Ok((gate, thin.params.clone()))
            }
            _ => Err(no_longer(name)),
        })?;
        let switched = self.switch(&params, &gate, &old).await;
        if switched.is_err() {
            gate.forget().await;
        }
        let ends = self.in_service(name, |thin, _| {
            let is_it = thin.suspension == switching;
            if is_it {
                thin.suspension = None;
            }
            Ok(is_it)
        });
        // On the new way or, after an error, on the old one; unless it goes or SPDK ends.
        if ends.unwrap_or(false) {
            gate.open().await;
        }
        if let Err(error) = switched {
            self.close_idle_pools();
            return Err(error);
        }
        if let Some(open) = self.open_pool_of(&old.pool)
            && let Err(error) = open.pool.deactivate(old.id).await
        {
            log::error!("bdev '{name}', which was switched: {error}");
        }
        log::info!(
            "bdev '{name}' leads to thin device {} of pool '{}' now",
            params.id,
            params.pool
        );
        self.close_idle_pools();
        Ok(json!({ "bdev_name": name, "pool": params.pool, "id": params.id }))
    }

    /// All that can fail, and then the change.
    async fn switch(
        self: &Rc<Self>,
        params: &ThinSwitch,
        gate: &Arc<Gate>,
        old: &ThinActivate,
    ) -> Result<(), RpcError> {
        let name = &params.bdev_name;
        let open = self.open_entry(&params.pool)?;
        let from = self.open_entry(&old.pool)?;
        alike(name, &from, &open, gate.origin.is_some())?;
        from.pool
            .check_no_external_merge(old.id)
            .map_err(in_pool(&old.pool))?;
        let new = ThinActivate {
            pool: params.pool.clone(),
            id: params.id,
            ..old.clone()
        };
        let origin = match &gate.origin {
            Some(origin) => Some(origin_device(&new, origin)?),
            None => None,
        };
        let refuse = |error: PoolError| {
            RpcError::new(error.errno(), format!("pool '{}': {error}", params.pool))
        };
        let dev = open
            .pool
            .activate(params.id, old.nr_sectors()?, origin)
            .await
            .map_err(refuse)?;
        let changed = self
            .change_way(params, gate, &open, dev, new)
            .await
            .map_err(|error| match error {
                SwitchError::Pool(error) => refuse(error),
                SwitchError::Refused(error) => error,
            });
        if changed.is_err()
            && let Err(error) = open.pool.deactivate(params.id).await
        {
            log::error!("pool '{}': {error}", params.pool);
        }
        changed
    }

    async fn change_way(
        &self,
        params: &ThinSwitch,
        gate: &Arc<Gate>,
        open: &Rc<OpenPool>,
        dev: Arc<ThinDev>,
        new: ThinActivate,
    ) -> Result<(), SwitchError> {
        let name = &params.bdev_name;
        // What was flushed on the old way must be durable on the new one.
        open.pool.make_durable().await.map_err(SwitchError::Pool)?;
        gate.prepare(&open.channels).await.map_err(|errno| {
            SwitchError::Refused(RpcError::new(
                errno,
                format!("bdev '{name}': out of memory"),
            ))
        })?;
        // Since then nothing may have begun to close.
        self.open_entry(&params.pool)
            .map_err(SwitchError::Refused)?;
        self.in_service(name, |thin, gate| {
            if thin.suspension != Some(Suspension::Switching(params.suspension)) {
                return Err(no_longer(name));
            }
            gate.lead_to(Way {
                dev,
                channels: open.channels.clone(),
                params: new.clone(),
            });
            thin.params = new;
            Ok(())
        })
        .map_err(SwitchError::Refused)
    }

    /// SPDK ends: nothing waits any more. It fails, because its contents may be elsewhere by now.
    pub fn let_thins_go(&self) {
        for thin in self.thins.borrow_mut().values_mut() {
            if let Some(gate) = thin.suspension.take().and(thin.gate.clone()) {
                spawn(async move { gate.fail().await });
            }
        }
    }
}

enum SwitchError {
    Pool(PoolError),
    Refused(RpcError),
}

/// Waits until no I/O of a held bdev is under way. False: it was not so in time.
async fn drained(gate: &Gate, open: &OpenPool, until: Instant) -> bool {
    while gate.nr_parked().await > 0 {
        if Instant::now() >= until {
            return false;
        }
        sleep(LOOK).await;
    }
    let left = until.saturating_duration_since(Instant::now());
    let over = pin!(open.pool.wait_for_mapped());
    matches!(select(over, sleep(left)).await, Either::Left(_))
}

/// Users of a bdev must not notice that it leads to another pool.
fn alike(name: &str, from: &OpenPool, to: &OpenPool, has_origin: bool) -> Result<(), RpcError> {
    let refuse = |what: String| {
        let text = format!("bdev '{name}' cannot be switched: {what}; use another pool");
        Err(RpcError::new(Errno::EINVAL, text))
    };
    let (old, new) = (from.data.info().block_bytes, to.data.info().block_bytes);
    if old != new {
        return refuse(format!(
            "it has logical blocks of {old} bytes, the pool's data bdev of {new}"
        ));
    }
    let of = |open: &OpenPool| open.pool.config().data_block_size_sectors;
    let (old, new) = (of(from), of(to));
    // SPDK divides I/O at the boundaries of data blocks, and goes on doing so at the old ones.
    if !new.is_multiple_of(old) || (has_origin && old != new) {
        let wanted = match has_origin {
            true => "the same, because it has an external origin",
            false => "a multiple",
        };
        return refuse(format!(
            "its data blocks have {old} sectors, the pool's {new}, which is not {wanted}"
        ));
    }
    if to.pool.config().ignore_discard && !from.pool.config().ignore_discard {
        return refuse("it takes discards, which the pool ignores".to_owned());
    }
    Ok(())
}
