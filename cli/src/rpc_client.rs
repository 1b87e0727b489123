//! Calls of a running SPDK target: JSON-RPC 2.0 over its Unix socket.
//!
//! One connection, one call at a time. A target that says nothing for the time limit, says too much, or something
//! that is no answer, is an error; nothing here waits for ever.

use serde_json::{Value, json};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The longest answer that is taken: pages of mappings are far shorter.
const MAX_ANSWER_BYTES: u64 = 256 << 20;

/// JSON-RPC's code for a method that is not there.
const METHOD_NOT_FOUND: i64 = -32601;

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    /// Nobody listens.
    #[error(
        "{}: {source}; is an SPDK target running? Start one, or name its RPC socket with --socket", socket.display()
    )]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// What.
        source: io::Error,
    },
    /// The connection failed.
    #[error("{}: {method}: {source}", socket.display())]
    Io {
        /// The socket.
        socket: PathBuf,
        /// The call.
        method: String,
        /// What.
        source: io::Error,
    },
    /// No answer in time.
    #[error("{}: {method}: no answer for {seconds} s; give it longer with --timeout", socket.display())]
    Silent {
        /// The socket.
        socket: PathBuf,
        /// The call.
        method: String,
        /// The limit.
        seconds: u64,
    },
    /// Not JSON-RPC.
    #[error("{}: {method}: {what}; is this the RPC socket of an SPDK target?", socket.display())]
    NoAnswer {
        /// The socket.
        socket: PathBuf,
        /// The call.
        method: String,
        /// What came instead.
        what: String,
    },
    /// The target knows no such method.
    #[error(
        "the target at {} has no method '{method}': spdk-dm is not loaded into it. Start it as spdk_dm_tgt, or with \
         LD_PRELOAD=libspdk_dm.so",
        socket.display()
    )]
    NoMethod {
        /// The socket.
        socket: PathBuf,
        /// The call.
        method: String,
    },
    /// The target refuses. Its text names the object and the remedy.
    #[error("{message}")]
    Refused {
        /// A negative errno, or one of JSON-RPC's codes.
        code: i64,
        /// Why.
        message: String,
    },
}

impl RpcError {
    /// Whether the target has answered, and refuses.
    pub fn is_refusal(&self) -> bool {
        matches!(self, RpcError::Refused { .. })
    }

    /// Whether what the call names is not there.
    pub fn is_no_device(&self) -> bool {
        matches!(self, RpcError::Refused { code, .. } if *code == -i64::from(libc::ENODEV))
    }
}

/// A connection to a target.
pub struct RpcClient {
    socket: PathBuf,
    limit: Duration,
    stream: BufReader<UnixStream>,
    next_id: u64,
}

impl RpcClient {
    /// Connects. `limit`: how long the target may say nothing.
    pub fn connect(socket: &Path, limit: Duration) -> Result<Self, RpcError> {
        let connect = || {
            let stream = UnixStream::connect(socket)?;
            stream.set_read_timeout(Some(limit))?;
            stream.set_write_timeout(Some(limit))?;
            Ok(stream)
        };
        let stream = connect().map_err(|source| RpcError::Connect {
            socket: socket.to_owned(),
            source,
        })?;
        Ok(RpcClient {
            socket: socket.to_owned(),
            limit,
            stream: BufReader::new(stream),
            next_id: 1,
        })
    }

    /// Calls a method; null stands for no parameters.
    pub fn call(&mut self, method: &str, params: Value) -> Result<Value, RpcError> {
        let id = self.next_id;
        self.next_id += 1;
        let mut request = json!({ "jsonrpc": "2.0", "id": id, "method": method });
        if !params.is_null() {
            request["params"] = params;
        }
        let sent = self
            .stream
            .get_mut()
            .write_all(request.to_string().as_bytes());
        sent.map_err(|source| self.failed(method, source))?;
        let answer = self.answer(method)?;
        if answer.get("id").and_then(Value::as_u64) != Some(id) {
            return Err(self.no_answer(method, "an answer to another call".to_owned()));
        }
        let Value::Object(mut answer) = answer else {
            return Err(self.no_answer(method, "no object".to_owned()));
        };
        if let Some(error) = answer.get("error").filter(|error| !error.is_null()) {
            let code = error.get("code").and_then(Value::as_i64).unwrap_or(0);
            if code == METHOD_NOT_FOUND {
                return Err(RpcError::NoMethod {
                    socket: self.socket.clone(),
                    method: method.to_owned(),
                });
            }
            let message = error.get("message").and_then(Value::as_str);
            return Err(RpcError::Refused {
                code,
                message: message.unwrap_or("refused without a reason").to_owned(),
            });
        }
        match answer.remove("result") {
            Some(result) => Ok(result),
            None => Err(self.no_answer(method, "neither result nor error".to_owned())),
        }
    }

    /// One JSON value.
    fn answer(&mut self, method: &str) -> Result<Value, RpcError> {
        let mut limited = self.stream.by_ref().take(MAX_ANSWER_BYTES);
        let read = serde_json::Deserializer::from_reader(&mut limited)
            .into_iter()
            .next();
        let is_full = limited.limit() == 0;
        match read {
            Some(Ok(value)) => Ok(value),
            Some(Err(error)) if is_full => {
                Err(self.no_answer(method, format!("an answer without end: {error}")))
            }
            Some(Err(error)) => match error.io_error_kind() {
                Some(kind) => Err(self.failed(method, kind.into())),
                None => Err(self.no_answer(method, error.to_string())),
            },
            None => Err(self.failed(method, io::ErrorKind::UnexpectedEof.into())),
        }
    }

    fn failed(&self, method: &str, source: io::Error) -> RpcError {
        let (socket, method) = (self.socket.clone(), method.to_owned());
        match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => RpcError::Silent {
                socket,
                method,
                seconds: self.limit.as_secs(),
            },
            _ => RpcError::Io {
                socket,
                method,
                source,
            },
        }
    }

    fn no_answer(&self, method: &str, what: String) -> RpcError {
        RpcError::NoAnswer {
            socket: self.socket.clone(),
            method: method.to_owned(),
            what,
        }
    }
}
