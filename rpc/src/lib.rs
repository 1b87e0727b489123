//! The JSON-RPC methods of spdk-dm.
//!
//! [`params`] are the parameters as structs, [`schema`] documents them (and is what the `rpc.py`
//! plugin is generated from), [`dispatch`] parses a call and hands it to a [`dispatch::Backend`].
//! [`table`] and [`message`] read device-mapper's own words; [`status`] writes them. Knows no SPDK.
#![forbid(unsafe_code)]

pub mod dispatch;
pub mod error;
pub mod message;
pub mod params;
pub mod python;
pub mod schema;
pub mod status;
pub mod table;

pub use error::RpcError;
