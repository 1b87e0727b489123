//! Promises of the protocol: what one end writes the other reads back, whatever the order of answers; and
//! bytes that are not NBD are refused without a panic and without much memory.

#![allow(clippy::unwrap_used)]

use nbd::client::{Client, MAX_DEPTH};
use nbd::server::{Received, answer, receive, shake_hands};
use nbd::{Export, Kind};
use proptest::prelude::*;
use std::collections::HashMap;
use std::io::{self, Cursor, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;

const SIZE: usize = 64 << 10;

fn export(read_only: bool) -> Export {
    Export {
        size_bytes: SIZE as u64,
        block_bytes: 512,
        read_only,
        flush: true,
        trim: true,
        write_zeroes: true,
    }
}

/// Serves memory; answers up to `batch` requests at a time, the last first.
fn serve(mut stream: UnixStream, export: Export, batch: usize) -> io::Result<Vec<u8>> {
    let mut memory = vec![0; SIZE];
    if shake_hands(&mut stream, "disk", &export)?.is_none() {
        return Ok(memory);
    }
    let mut waiting = Vec::new();
    loop {
        let received = receive(&mut stream, &export)?;
        let end = matches!(received, Received::Disconnect);
        match received {
            Received::Disconnect => {}
            Received::Refused { cookie, errno } => waiting.push((cookie, Err(errno))),
            Received::Request { request, data } => {
                let from = request.offset as usize;
                let range = from..from + request.length as usize;
                let found = match request.kind {
                    Kind::Read => memory[range].to_vec(),
                    Kind::Write => {
                        memory[range].copy_from_slice(&data);
                        Vec::new()
                    }
                    Kind::Trim | Kind::WriteZeroes => {
                        memory[range].fill(0);
                        Vec::new()
                    }
                    _ => Vec::new(),
                };
                waiting.push((request.cookie, Ok(found)));
            }
        }
        if end || waiting.len() >= batch {
            for (cookie, result) in waiting.drain(..).rev() {
                answer(
                    &mut stream,
                    cookie,
                    result.as_ref().map(|data| [&data[..]]).map_err(|e| *e),
                )?;
            }
        }
        if end {
            return Ok(memory);
        }
    }
}

fn request() -> impl Strategy<Value = (Kind, usize, usize, u8)> {
    let kind = prop_oneof![
        Just(Kind::Read),
        Just(Kind::Write),
        Just(Kind::Trim),
        Just(Kind::WriteZeroes)
    ];
    (kind, 0..SIZE / 512, 1..17usize, any::<u8>())
        .prop_map(|(kind, at, n, value)| (kind, at * 512, n.min(SIZE / 512 - at) * 512, value))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Reads find what the writes before them left, with many requests under way and answers out of order.
    #[test]
    fn what_is_written_is_read(requests in prop::collection::vec(request(), 1..60), batch in 1..=MAX_DEPTH) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = thread::spawn(move || serve(theirs, export(false), batch));
        let mut client = Client::connect(ours, "disk").unwrap();
        prop_assert_eq!(*client.export(), export(false));
        let mut model = vec![0; SIZE];
        let mut expected: HashMap<u64, Vec<u8>> = HashMap::new();
        let take = |client: &mut Client<UnixStream>, expected: &mut HashMap<u64, Vec<u8>>| {
            let answer = client.receive().unwrap();
            let wanted = expected.remove(&answer.cookie);
            assert_eq!(answer.result.ok(), wanted);
        };
        let rounds = requests.len() / batch * batch;
        for (kind, at, length, value) in requests.into_iter().take(rounds) {
            let data = if kind == Kind::Write { vec![value; length] } else { Vec::new() };
            let cookie = client.send(kind, at as u64, length as u32, &data).unwrap();
            let found = match kind {
                Kind::Read => model[at..at + length].to_vec(),
                kind => {
                    model[at..at + length].fill(if kind == Kind::Write { value } else { 0 });
                    Vec::new()
                }
            };
            expected.insert(cookie, found);
            while client.under_way() == batch {
                for _ in 0..batch {
                    take(&mut client, &mut expected);
                }
            }
        }
        client.disconnect().unwrap();
        prop_assert_eq!(server.join().unwrap().unwrap(), model);
    }

    /// Garbage after an honest beginning, or from the start.
    #[test]
    fn garbage_is_refused(garbage in prop::collection::vec(any::<u8>(), 0..200), honest in 0..2usize) {
        struct Stream(Cursor<Vec<u8>>);
        impl Read for Stream {
            fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
                self.0.read(buf)
            }
        }
        impl Write for Stream {
            fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
                Ok(buf.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut bytes = Vec::new();
        if honest == 1 {
            bytes.extend([0, 0, 0, 3]);
            bytes.extend(b"IHAVEOPT");
        }
        bytes.extend(&garbage);
        let mut stream = Stream(Cursor::new(bytes));
        if let Ok(Some(())) = shake_hands(&mut stream, "disk", &export(false)) {
            while let Ok(received) = receive(&mut stream, &export(false)) {
                if let Received::Disconnect = received {
                    break;
                }
            }
        }
        prop_assert!(Client::connect(Stream(Cursor::new(garbage)), "").is_err());
    }
}

/// What an export does not allow, and what reaches beyond it, is refused, and the connection goes on.
#[test]
fn refusals() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || serve(theirs, export(true), 1));
    let mut client = Client::connect(ours, "").unwrap();
    let mut refused = |kind, offset, length: u32, data: &[u8]| {
        client.send(kind, offset, length, data).unwrap();
        client.receive().unwrap().result.unwrap_err().0
    };
    assert_eq!(refused(Kind::Write, 0, 512, &[1; 512]), 1);
    assert_eq!(refused(Kind::Read, SIZE as u64, 512, &[]), 22);
    assert_eq!(refused(Kind::Read, u64::MAX - 511, 512, &[]), 22);
    assert_eq!(refused(Kind::Read, 1, 512, &[]), 22);
    assert_eq!(refused(Kind::Unknown(99), 0, 0, &[]), 95);
    assert_eq!(client.call(Kind::Read, 0, 512, &[]).unwrap(), [0; 512]);
    client.disconnect().unwrap();
    server.join().unwrap().unwrap();

    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || serve(theirs, export(true), 1));
    let refused = Client::connect(ours, "other").err().unwrap().to_string();
    assert!(refused.contains("'other'"), "{refused}");
    drop(server);
}
