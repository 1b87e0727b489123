//! `spdk-dm` against sockets where no target answers as it should. What a real target answers is tested with one, in
//! tests/test_dm_commands.py.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use support::spdk_dm;
use support::tools::Temp;

/// What `spdk-dm table` says of a peer that answers the first call like this. None: it says nothing.
fn answered_by(name: &str, answer: Option<&'static [u8]>) -> String {
    let socket = Temp::new(name);
    let listener = UnixListener::bind(&socket.0).unwrap();
    let peer = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut call = [0; 4096];
        let length = stream.read(&mut call).unwrap();
        let call = String::from_utf8_lossy(&call[..length]).into_owned();
        match answer {
            // Who has had enough does not read all of it.
            Some(answer) => drop(stream.write_all(answer)),
            // Until the caller has had enough.
            None => assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0),
        }
        call
    });
    let ran = spdk_dm(args!["table", "-s", socket.0, "-t", "1", "device"]);
    let call: serde_json::Value = serde_json::from_str(&peer.join().unwrap()).unwrap();
    assert_eq!(call["method"], "dm_table");
    assert_eq!(call["params"], serde_json::json!({ "name": "device" }));
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{ran:?}");
    ran.err
}

/// Whatever a peer answers: an error that says what is wrong, and no waiting for ever.
#[test]
fn odd_answers() {
    for (name, answer, expected) in [
        ("closed", &b""[..], "dm_table"),
        (
            "half",
            b"{\"jsonrpc\": \"2.0\", \"id\": 1, \"resu",
            "dm_table",
        ),
        (
            "no-json",
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            "RPC socket of an SPDK target",
        ),
        ("no-object", b"[1, 2]", "RPC socket of an SPDK target"),
        (
            "other-call",
            b"{\"id\": 7, \"result\": true}",
            "another call",
        ),
        ("empty", b"{\"id\": 1}", "neither result nor error"),
        ("other-type", b"{\"id\": 1, \"result\": 5}", "same version"),
        (
            "no-line",
            b"{\"id\": 1, \"result\": \"0 x y\"}",
            "same version",
        ),
        (
            "no-plugin",
            b"{\"id\": 1, \"error\": {\"code\": -32601, \"message\": \"Method not found\"}}",
            "LD_PRELOAD=libspdk_dm.so",
        ),
        (
            "refused",
            b"{\"id\": 1, \"error\": {\"code\": -19, \"message\": \"there is no device\"}}",
            "spdk-dm: there is no device\n",
        ),
        (
            "no-reason",
            b"{\"id\": 1, \"error\": {}}",
            "without a reason",
        ),
    ] {
        let said = answered_by(name, Some(answer));
        assert!(said.contains(expected), "{name}: {said}");
    }
    let said = answered_by("silent", None);
    assert!(said.contains("no answer for 1 s"), "{said}");
}

/// Arrays without end nested in each other are no way to the end of the stack.
#[test]
fn nested_without_end() {
    static DEEP: [u8; 1 << 20] = [b'['; 1 << 20];
    let said = answered_by("deep", Some(&DEEP));
    assert!(said.contains("recursion"), "{said}");
}

/// Where nobody listens, the remedy is named; a file that is no socket is not written to.
#[test]
fn no_target() {
    let missing = spdk_dm(args!["ls", "-s", "/nonexistent/spdk.sock"]);
    assert_eq!(missing.code, Some(1));
    for words in [
        "/nonexistent/spdk.sock",
        "--socket",
        "is an SPDK target running",
    ] {
        assert!(missing.err.contains(words), "{missing:?}");
    }
    let file = support::files::with("no-socket", "text");
    assert_eq!(spdk_dm(args!["status", "-s", file.0]).code, Some(1));
    assert_eq!(std::fs::read_to_string(&file.0).unwrap(), "text");
    // Before anything is asked, a wrong command is.
    let table = spdk_dm(args![
        "create",
        "-s",
        "/nonexistent",
        "name",
        "--table",
        "# none"
    ]);
    assert!(table.err.contains("the table is empty"), "{table:?}");
    let file = spdk_dm(args!["ls", "pool.meta"]);
    assert!(file.err.contains("spdk-dm thin ls pool.meta"), "{file:?}");
}

/// Completions and manual pages know every verb.
#[test]
fn manual() {
    for shell in ["bash", "zsh", "fish"] {
        let text = support::succeed(args!["completions", shell]);
        for verb in ["create", "wait", "repair"] {
            assert!(text.contains(verb), "{shell}: {verb}");
        }
    }
    let folder = Temp::new("man");
    std::fs::create_dir(&folder.0).unwrap();
    support::succeed(args!["man", folder.0]);
    for page in [
        "spdk-dm",
        "spdk-dm-create",
        "spdk-dm-thin-ls",
        "spdk-dm-ploop-convert",
    ] {
        let text = std::fs::read_to_string(folder.0.join(format!("{page}.1"))).unwrap();
        assert!(text.contains(".SH SYNOPSIS"), "{page}");
    }
    std::fs::remove_dir_all(&folder.0).unwrap();
}
