//! The `rpc.py` plugin, generated from the schema.

use crate::schema::{Kind, METHODS, Method, Parameter};
use std::fmt::Write;

const HEAD: &str = r#"# SPDX-License-Identifier: BSD-3-Clause
# Generated from the schema in rpc/src/schema.rs by `cargo run -p rpc --bin rpc-python`; do not edit.
"""spdk-dm's methods for SPDK's rpc.py: put this file's folder on PYTHONPATH and call
rpc.py --plugin spdk_dm_rpc METHOD --help"""

import json


def _call(args, method, names):
    params = {name: getattr(args, name) for name in names}
    # What was not given takes its default in the target.
    params = {name: value for name, value in params.items() if value is not None and value is not False}
    print(json.dumps(args.client.call(method, params), indent=2))


def _words(text):
    return [word for word in text.split(',') if word]


def _numbers(text):
    return [int(word) for word in _words(text)]


def spdk_rpc_plugin_initialize(subparsers):
"#;

/// The module's text.
pub fn module() -> String {
    let mut text = HEAD.to_owned();
    for method in METHODS {
        write_method(&mut text, method);
    }
    // The blank line between methods, not at the end.
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

fn quote(text: &str) -> String {
    // argparse takes % for a format.
    format!(
        "'{}'",
        text.replace('\\', "\\\\")
            .replace('\'', "\\'")
            .replace('%', "%%")
    )
}

fn write_method(text: &mut String, method: &Method) {
    let help = quote(method.help);
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "    p = subparsers.add_parser('{}', help={help}, description={help})",
        method.name
    );
    for parameter in method.parameters {
        let _ = writeln!(text, "    p.add_argument({})", arguments(parameter));
    }
    let names: Vec<String> = method
        .parameters
        .iter()
        .map(|p| format!("'{}'", p.name))
        .collect();
    let _ = writeln!(
        text,
        "    p.set_defaults(func=lambda args: _call(args, '{}', [{}]))\n",
        method.name,
        names.join(", ")
    );
}

fn arguments(parameter: &Parameter) -> String {
    let help = quote(parameter.help);
    let kind = match parameter.kind {
        Kind::String => "",
        Kind::Unsigned => ", type=int",
        Kind::Flag => ", action='store_true'",
        Kind::Strings => ", type=_words, metavar='WORD,WORD...'",
        Kind::Numbers => ", type=_numbers, metavar='NUMBER,NUMBER...'",
        Kind::DumpFormat => ", choices=['xml', 'xml_shared']",
    };
    match parameter.required {
        true => format!("'{}', help={help}{kind}", parameter.name),
        false => {
            let option = parameter.name.replace('_', "-");
            format!("'--{option}', dest='{}', help={help}{kind}", parameter.name)
        }
    }
}
