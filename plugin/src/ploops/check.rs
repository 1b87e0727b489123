//! `ploop_check`: looks at an image on a bdev that nothing uses, and closes one that was not closed.

use crate::bases::{self, Base};
use crate::devices::Buffers;
use crate::held_bdev::HeldBdev;
use crate::life;
use crate::registry::Registry;
use bdev::ploop::image::survey::Survey;
use bdev::ploop::offline::mark_closed;
use bdev::ploop::{PloopError, Source};
use bdev::target::BaseId;
use rpc::RpcError;
use rpc::dispatch::Answer;
use rpc::params::PloopCheck;
use serde_json::json;
use spdk::base::IoKind;
use std::cell::RefCell;
use std::rc::{Rc, Weak};

/// Problems that are shown; others are counted.
const SHOWN: usize = 100;

impl Registry {
    /// Checks an image; targets that waited for it to be closed open.
    pub async fn check_image(self: &Rc<Self>, params: &PloopCheck) -> Answer {
        let answer = self.look_at_image(params).await?;
        if answer["repaired"] == json!(true) {
            self.open_ready_ploops().await;
        }
        Ok(answer)
    }

    async fn look_at_image(self: &Rc<Self>, params: &PloopCheck) -> Answer {
        let bdev = &params.bdev;
        // If the bdev goes, it is not held up by this.
        let held: Rc<RefCell<Weak<HeldBdev>>> = Rc::default();
        let removed = held.clone();
        let events = life::follow(
            self,
            move |_| {
                let device = removed.borrow().upgrade();
                async move {
                    if let Some(device) = device {
                        device.detach();
                    }
                }
            },
            |_| async {},
        );
        let Base {
            desc,
            channel,
            closed,
        } = bases::take("ploop_check", bdev, 512, events)?;
        let device = HeldBdev::new(channel, Rc::<Buffers>::default());
        *held.borrow_mut() = Rc::downgrade(&device);
        let source = Source {
            name: bdev.clone(),
            device: device.clone(),
            base: BaseId(0),
            flushes: desc.info().supports(IoKind::Flush),
        };
        drop(desc);
        let answer = look_at(source, params.repair).await;
        device.detach();
        drop(device);
        bases::wait_closed("ploop_check", vec![closed]).await;
        answer.map_err(|error| RpcError::new(error.errno(), error.to_string()))
    }
}

async fn look_at(source: Source, repair: bool) -> Result<serde_json::Value, PloopError> {
    let image = source.name.clone();
    let survey = Survey::of(&*source.device).await;
    let found = survey.map_err(|problem| PloopError::Image {
        image: image.clone(),
        problem,
    })?;
    let damages = found.nr_problems + u64::from(found.extension_problem.is_some());
    let repaired = repair && found.is_in_use() && damages == 0;
    if repaired {
        mark_closed(source).await?;
    }
    let problems = found.problems.iter().chain(&found.extension_problem);
    let problems: Vec<String> = problems.take(SHOWN).map(ToString::to_string).collect();
    Ok(json!({
        "bdev": image,
        "ok": damages == 0 && (repaired || !found.is_in_use()),
        "not_closed": found.is_in_use(),
        "repaired": repaired,
        "damages": damages,
        "problems": problems,
        "size_sectors": found.header.nr_sectors,
        "cluster_size_sectors": found.header.cluster_sectors,
        "mapped_clusters": found.nr_mapped,
        "holes": found.nr_holes(),
    }))
}
