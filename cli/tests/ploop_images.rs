//! `spdk-dm ploop` and QEMU agree on images, whoever made and wrote them; damage is found and named.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use proptest::prelude::*;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::process::Command;
use support::tools::{Temp, run};
use support::{spdk_dm, succeed};

/// A write by qemu-io: offset and length in KiB, and the byte.
#[derive(Debug, Clone)]
struct Write {
    at_kib: u64,
    len_kib: u64,
    byte: u8,
}

#[derive(Debug, Clone)]
struct Disk {
    size_mib: u64,
    cluster_kib: u64,
    writes: Vec<Write>,
}

fn disks() -> impl Strategy<Value = Disk> {
    let size = 1u64..40;
    let cluster = prop::sample::select(vec![64u64, 128, 256, 1024]);
    (size, cluster).prop_flat_map(|(size_mib, cluster_kib)| {
        let kib = size_mib * 1024;
        // Zeroes, too: a cluster of them is there, or a hole.
        let write = (0..kib, 1..700u64, 0..4u8).prop_map(move |(at_kib, len_kib, byte)| Write {
            at_kib,
            len_kib: len_kib.min(kib - at_kib),
            byte,
        });
        prop::collection::vec(write, 0..12).prop_map(move |writes| Disk {
            size_mib,
            cluster_kib,
            writes,
        })
    })
}

fn tool(name: &str) -> Command {
    let mut command = Command::new("timeout");
    command.arg("120").arg(name);
    command
}

fn qemu_img(args: &[&str]) -> String {
    run(tool("qemu-img").args(args))
}

impl Disk {
    fn write_by_qemu(&self, image: &Temp) {
        let mut qemu_io = tool("qemu-io");
        qemu_io.args(["-f", "parallels"]);
        for Write {
            at_kib,
            len_kib,
            byte,
        } in &self.writes
        {
            qemu_io
                .arg("-c")
                .arg(format!("write -P {byte} {at_kib}k {len_kib}k"));
        }
        if !self.writes.is_empty() {
            run(qemu_io.arg(&image.0));
        }
    }

    /// What the disk holds.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; (self.size_mib << 20) as usize];
        self.write_to(&mut bytes);
        bytes
    }

    fn write_to(&self, bytes: &mut [u8]) {
        for write in &self.writes {
            let end = ((write.at_kib + write.len_kib) << 10) as usize;
            bytes[(write.at_kib << 10) as usize..end].fill(write.byte);
        }
    }

    fn made_by_us(&self, name: &str) -> Temp {
        let image = Temp::new(name);
        succeed(args![
            "ploop",
            "create",
            image.0,
            "--size-mib",
            self.size_mib.to_string(),
            "--cluster-kib",
            self.cluster_kib.to_string(),
            "--quiet"
        ]);
        image
    }

    fn made_by_qemu(&self, name: &str) -> Temp {
        let image = Temp::new(name);
        qemu_img(&[
            "create",
            "-q",
            "-f",
            "parallels",
            "-o",
            &format!("cluster_size={}k", self.cluster_kib),
            text(&image),
            &format!("{}M", self.size_mib),
        ]);
        image
    }
}

fn text(file: &Temp) -> &str {
    file.0.to_str().unwrap()
}

/// `qemu-img check` finds nothing but room that is not used: exit code 0, or 3.
fn qemu_finds_no_damage(image: &Temp) {
    let checked = tool("qemu-img")
        .args(["check", "-f", "parallels", text(image)])
        .output()
        .unwrap();
    assert!(matches!(checked.status.code(), Some(0 | 3)), "{checked:?}");
}

fn same_by_qemu(a: &Temp, a_format: &str, b: &Temp, b_format: &str) {
    qemu_img(&["compare", "-f", a_format, "-F", b_format, text(a), text(b)]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// What QEMU has written is found sound, and converted to what QEMU reads in it.
    #[test]
    fn images_of_qemu(disk in disks(), ours in any::<bool>()) {
        let image = match ours {
            true => disk.made_by_us("ploop-mixed"),
            false => disk.made_by_qemu("ploop-qemu"),
        };
        disk.write_by_qemu(&image);
        qemu_finds_no_damage(&image);
        succeed(args!["ploop", "check", image.0]);
        let raw = Temp::new("ploop-raw");
        succeed(args!["ploop", "convert", "-q", image.0, "--to", "raw", "-o", raw.0]);
        prop_assert!(std::fs::read(&raw.0).unwrap() == disk.bytes());
        for compact in [false, true] {
            let again = Temp::new("ploop-again");
            let compact: &[&str] = if compact { &["--compact"] } else { &[] };
            let mut command = vec!["ploop", "convert", "-q", text(&image), "-o", text(&again)];
            command.extend(compact);
            succeed(command);
            qemu_finds_no_damage(&again);
            same_by_qemu(&image, "parallels", &again, "parallels");
            // What QEMU writes then is where we look for it, too.
            let more = Disk { writes: vec![Write { at_kib: 0, len_kib: 5, byte: 9 }], ..disk.clone() };
            more.write_by_qemu(&again);
            succeed(args!["ploop", "check", again.0]);
        }
    }

    /// A raw file becomes an image in which QEMU reads the same.
    #[test]
    fn images_of_raw_files(disk in disks(), tail in 0usize..3000) {
        let raw = Temp::new("ploop-from-raw");
        let mut bytes = disk.bytes();
        bytes.resize(bytes.len() - bytes.len().min(tail) / 512 * 512, 0);
        std::fs::write(&raw.0, &bytes).unwrap();
        let image = Temp::new("ploop-of-raw");
        let cluster = disk.cluster_kib.to_string();
        succeed(args![
            "ploop", "convert", "-q", raw.0, "--from", "raw", "--cluster-kib", cluster, "-o", image.0
        ]);
        qemu_finds_no_damage(&image);
        succeed(args!["ploop", "check", image.0]);
        same_by_qemu(&raw, "raw", &image, "parallels");
    }

    /// A chain of deltas is the writes of one after the other, over a raw base or none.
    #[test]
    fn chains(base in disks(), more in prop::collection::vec(disks(), 1..3), raw_base in any::<bool>()) {
        let mut expected = base.bytes();
        let base_file = match raw_base {
            true => {
                let file = Temp::new("ploop-base-raw");
                let cluster = (base.cluster_kib << 10) as usize;
                let mut bytes = expected.clone();
                bytes.resize(bytes.len().next_multiple_of(cluster), 0);
                std::fs::write(&file.0, bytes).unwrap();
                file
            }
            false => {
                let file = base.made_by_us("ploop-base");
                base.write_by_qemu(&file);
                file
            }
        };
        let mut chain = vec![base_file];
        for delta in more {
            // QEMU knows no lower deltas: whole clusters are written.
            let kib = base.cluster_kib;
            let last = base.size_mib * 1024 / kib * kib;
            let writes = delta.writes.iter().map(|write| {
                let at_kib = (write.at_kib / kib * kib).min(last - kib);
                let len_kib = write.len_kib.next_multiple_of(kib).min(last - at_kib);
                Write { at_kib, len_kib, byte: write.byte }
            });
            let delta = Disk { writes: writes.collect(), ..base.clone() };
            let file = delta.made_by_us("ploop-delta");
            delta.write_by_qemu(&file);
            delta.write_to(&mut expected);
            chain.push(file);
        }
        let top = chain.pop().unwrap();
        let out = Temp::new("ploop-flat");
        let mut command = vec!["ploop", "convert", "-q", text(&top), "--to", "raw", "-o", text(&out)];
        for lower in &chain {
            command.extend(["--lower", text(lower)]);
        }
        if raw_base {
            command.push("--raw-base");
        }
        succeed(command);
        prop_assert!(std::fs::read(&out.0).unwrap() == expected);
    }
}

fn an_image(name: &str) -> Temp {
    let disk = Disk {
        size_mib: 8,
        cluster_kib: 1024,
        writes: [1, 3, 5]
            .map(|mib| Write {
                at_kib: mib * 1024,
                len_kib: 4,
                byte: 7,
            })
            .to_vec(),
    };
    let image = disk.made_by_us(name);
    disk.write_by_qemu(&image);
    image
}

fn patch(image: &Temp, at: u64, word: u32) {
    let file = OpenOptions::new().write(true).open(&image.0).unwrap();
    file.write_all_at(&word.to_le_bytes(), at).unwrap();
}

fn word(image: &Temp, at: u64) -> u32 {
    let mut bytes = [0; 4];
    File::open(&image.0)
        .unwrap()
        .read_exact_at(&mut bytes, at)
        .unwrap();
    u32::from_le_bytes(bytes)
}

/// Each kind of damage is found, its cluster named, and nothing is written.
#[test]
fn damage_is_named() {
    for (what, at, value, says) in [
        (
            "duplicate",
            64 + 4 * 3,
            1,
            "cluster 3 names sector 2048, which is in use",
        ),
        (
            "outside",
            64 + 4 * 6,
            0xffff,
            "cluster 6 names sector 134215680",
        ),
        ("size", 28, 0, "a cluster size of 0 sectors"),
        ("signature", 0, 0, "no ploop image"),
        ("data offset", 48, 0, "data cannot begin at sector 0"),
        ("entries", 32, 2, "2 BAT entries are too few"),
    ] {
        let image = an_image("ploop-damaged");
        assert_eq!(
            word(&image, 64 + 4),
            1,
            "the first write is in the first cluster"
        );
        patch(&image, at, value);
        let before = std::fs::read(&image.0).unwrap();
        for repair in [false, true] {
            let mut command = vec!["ploop", "check", text(&image)];
            command.extend(repair.then_some("--repair"));
            let ran = spdk_dm(command);
            assert_eq!(ran.code, Some(1), "{what}: {ran:?}");
            assert!(ran.err.contains(says), "{what}: {ran:?}");
        }
        assert!(std::fs::read(&image.0).unwrap() == before, "{what}");
    }
}

/// An image that was not closed is told, and marked as closed on demand only; QEMU agrees about both.
#[test]
fn not_closed() {
    let image = an_image("ploop-open");
    patch(&image, 44, 0x746F_6E59);
    let ran = spdk_dm(["ploop", "check", text(&image)]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("was not closed"), "{ran:?}");
    let qemu = tool("qemu-img")
        .args(["check", "-f", "parallels", text(&image)])
        .output()
        .unwrap();
    assert_eq!(qemu.status.code(), Some(2), "QEMU says so, too: {qemu:?}");
    assert_eq!(word(&image, 44), 0x746F_6E59);
    succeed(["ploop", "check", "--repair", text(&image)]);
    assert_eq!(word(&image, 44), 0x312E_3276);
    qemu_finds_no_damage(&image);
    let info = succeed(["ploop", "info", "--json", text(&image)]);
    assert!(info.contains("\"clusters_mapped\": 3"), "{info}");
    assert!(info.contains("\"problems\": 0"), "{info}");
}

/// Nothing is overwritten unasked.
#[test]
fn nothing_is_overwritten() {
    let image = an_image("ploop-kept");
    let before = std::fs::read(&image.0).unwrap();
    for command in [
        vec!["ploop", "create", text(&image), "--size-mib", "1"],
        vec![
            "ploop",
            "convert",
            text(&image),
            "-o",
            text(&image),
            "--force",
        ],
    ] {
        assert_eq!(spdk_dm(command).code, Some(1));
    }
    let other = an_image("ploop-other");
    let ran = spdk_dm(["ploop", "convert", text(&other), "-o", text(&image)]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(std::fs::read(&image.0).unwrap() == before);
}
