//! `spdk-dm metrics`: what a running target measures, as OpenMetrics.
//!
//! Each scrape asks the target anew and makes a registry of its answers; nothing is kept in between.

pub mod collect;
mod figures;

use crate::Global;
use crate::dm::Server;
use crate::error::CliError;
use crate::output::Output;
use clap::Args;
use collect::{Found, Labels, Object, replications};
use figures::{Group, Kind};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde_json::Value;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use tiny_http::{Header, Method, Request, Response};

/// Arguments.
#[derive(Args)]
pub struct MetricsArgs {
    #[command(flatten)]
    server: Server,
    /// Serve them over HTTP at /metrics on this address, e.g. 127.0.0.1:9750 (default: print them once). Who can reach
    /// it can read the names and figures of all devices
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
}

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

impl MetricsArgs {
    /// Prints them, or serves them until the program is ended.
    pub fn run(self, global: Global) -> Result<bool, CliError> {
        match self.listen {
            Some(address) => self.serve(address, global),
            None => {
                let found = Found::ask(&mut self.server.connect()?)?;
                let text = text(Some(&found), &replications(self.server.socket())?);
                let mut output = Output::open(None)?;
                let written = output.out.write_all(text.as_bytes());
                written
                    .and_then(|()| output.out.flush())
                    .map_err(CliError::io(&output.path))?;
                Ok(true)
            }
        }
    }

    fn serve(&self, address: SocketAddr, global: Global) -> Result<bool, CliError> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| CliError::Listen {
            address,
            what: error.to_string(),
        };
        let http = tiny_http::Server::http(address).map_err(failed)?;
        if !global.quiet {
            eprintln!("spdk-dm: http://{}/metrics", http.server_addr());
        }
        loop {
            let request = http
                .recv()
                .map_err(CliError::io(&PathBuf::from(address.to_string())))?;
            if let Err(error) = self.answer(request) {
                log::info!("a scrape was not answered: {error}");
            }
        }
    }

    fn answer(&self, request: Request) -> std::io::Result<()> {
        let path = request.url().split('?').next().unwrap_or_default();
        match (request.method(), path) {
            (Method::Get, "/metrics") => {
                let response = Response::from_string(self.scrape());
                match Header::from_bytes("Content-Type", CONTENT_TYPE) {
                    Ok(header) => request.respond(response.with_header(header)),
                    Err(()) => request.respond(response),
                }
            }
            (Method::Get, _) => {
                let text = "spdk-dm: see /metrics\n";
                request.respond(Response::from_string(text).with_status_code(404))
            }
            _ => request.respond(Response::empty(405)),
        }
    }

    /// A target that cannot be asked is a figure, too.
    fn scrape(&self) -> String {
        let found = self
            .server
            .connect()
            .and_then(|mut client| Found::ask(&mut client));
        if let Err(error) = &found {
            log::warn!("{error}");
        }
        let replications = replications(self.server.socket());
        if let Err(error) = &replications {
            log::warn!("{error}");
        }
        text(found.as_ref().ok(), &replications.unwrap_or_default())
    }
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Bool(is_so) => Some(f64::from(u8::from(*is_so))),
        value => value.as_f64(),
    }
}

/// What is measured of the objects of a kind.
fn register(registry: &mut Registry, group: &Group, objects: &[Object]) {
    let registry = registry.sub_registry_with_prefix(group.kind);
    for figure in group.figures {
        let values = objects.iter().filter_map(|object| {
            let value = number(object.status.get(figure.field)?)?;
            Some((&object.labels, value * figure.scale))
        });
        match figure.kind {
            Kind::Gauge => {
                let family = Family::<Labels, Gauge<f64, AtomicU64>>::default();
                for (labels, value) in values {
                    family.get_or_create(labels).set(value);
                }
                registry.register(figure.name, figure.help, family);
            }
            Kind::Counter => {
                let family = Family::<Labels, Counter<f64, AtomicU64>>::default();
                for (labels, value) in values {
                    family.get_or_create(labels).inc_by(value);
                }
                registry.register(figure.name, figure.help, family);
            }
        }
    }
    for word in group.words {
        let family = Family::<Labels, Gauge>::default();
        for object in objects {
            let Some(is) = object.status.get(word.field).and_then(Value::as_str) else {
                continue;
            };
            for possible in word.words {
                let mut labels = object.labels.clone();
                labels.push((word.field.to_owned(), (*possible).to_owned()));
                family
                    .get_or_create(&labels)
                    .set(i64::from(is == *possible));
            }
        }
        registry.register(word.field, word.help, family);
    }
}

/// The text of a scrape. None: the target could not be asked.
fn text(found: Option<&Found>, replications: &[Object]) -> String {
    let mut registry = Registry::with_prefix("spdk_dm");
    let up = Gauge::<i64>::default();
    up.set(i64::from(found.is_some()));
    registry.register("up", "1: the target has answered", up);
    if let Some(found) = found {
        register(&mut registry, &figures::POOL, &found.pools);
        register(&mut registry, &figures::THIN, &found.thins);
        register(&mut registry, &figures::ERA, &found.eras);
        register(&mut registry, &figures::ORIGIN, &found.origins);
        register(&mut registry, &figures::SNAPSHOT, &found.snapshots);
        register(&mut registry, &figures::BDEV, &found.bdevs);
    }
    // Only where it is used: the lag is of interest also while a target does not answer.
    if !replications.is_empty() {
        register(&mut registry, &figures::REPLICATION, replications);
    }
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => text,
        Err(std::fmt::Error) => unreachable!("a string takes all text"),
    }
}
