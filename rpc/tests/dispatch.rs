//! What gets through `dispatch` to a backend: only parameters that are valid as a whole, so that a
//! refusal for bad parameters has changed nothing; and the status lines seen on a kernel.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use async_trait::async_trait;
use bdev::thin::status::ThinStatus;
use proptest::prelude::*;
use rpc::dispatch::{Answer, Backend, JsonRpcError, dispatch, method_names};
use rpc::params::*;
use rpc::schema::METHODS;
use serde_json::{Value, json};

/// Answers with the parameters it was given, so that a test sees what got through.
struct Echo;

macro_rules! echo {
    ($($method:ident: $params:ident),* $(,)?) => {
        #[async_trait(?Send)]
        impl Backend for Echo {
            $(async fn $method(&self, params: $params) -> Answer {
                Ok(json!({ stringify!($method): params }))
            })*
        }
    };
}
rpc::for_each_method!(echo);

fn call(method: &str, params: &str) -> Result<Value, JsonRpcError> {
    futures::executor::block_on(dispatch(&Echo, method, params))
        .map(|text| serde_json::from_str(&text).unwrap())
}

/// Each method of the schema reaches the backend's function of that name, with its parameters.
#[test]
fn every_method_reaches_its_function() {
    for method in METHODS {
        let params: Value = method
            .parameters
            .iter()
            .filter(|p| p.required)
            .map(|p| match p.kind {
                rpc::schema::Kind::Unsigned => (p.name.to_owned(), json!(1)),
                _ => (p.name.to_owned(), json!(format!("a-{}", p.name))),
            })
            .collect::<serde_json::Map<_, _>>()
            .into();
        let mut params = params;
        if method.name == "thin_activate" {
            params["size_mib"] = json!(1);
        }
        if method.name == "linear_create" {
            params["segments"] = json!(["a:0:8"]);
        }
        if method.name == "ploop_notify_merged" {
            params["direction"] = json!("backward");
        }
        if method.name == "ploop_update_delta_index" {
            params["map"] = json!("1:2;3:4");
        }
        let answer = call(method.name, &params.to_string()).unwrap();
        let got = &answer[method.name];
        for (name, value) in params.as_object().unwrap() {
            assert_eq!(&got[name], value, "{} {name}", method.name);
        }
    }
}

/// The kind of refusal: -32601 and -32602 for what is not a call at all, a negative errno for values
/// out of range; and the text names what is wrong.
#[test]
fn refusals() {
    let pool = |more: &str| format!(r#"{{"name":"p","metadata_bdev":"m","data_bdev":"d",{more}}}"#);
    let all_features = pool(&format!(r#""features":{}"#, json!(POOL_FEATURES)));
    let long_pool = "p".repeat(255);
    let long_name = format!(r#"{{"pool":"{long_pool}","id":1,"size_mib":1}}"#);
    for (method, params, code, words) in [
        ("thin_unheard_of", "{}", -32601, "thin_unheard_of"),
        ("thin_list", "", -32602, "pool"),
        ("thin_list", r#"{"pool":7}"#, -32602, "pool"),
        (
            "thin_list",
            r#"{"pool":"p","x":1}"#,
            -32602,
            "unknown field `x`",
        ),
        (
            "thin_list",
            r#"{"pool":"p"} {}"#,
            -32602,
            "after the parameters",
        ),
        ("thin_delete", r#"{"pool":"p","id":-1}"#, -32602, "id"),
        (
            "thin_delete",
            r#"{"pool":"p","id":16777216}"#,
            -22,
            "16777216",
        ),
        (
            "dm_message",
            r#"{"name":"p","message":"m","sector":8}"#,
            -22,
            "sector 8",
        ),
        (
            "thin_pool_create",
            &pool(r#""data_block_size_sectors":100"#),
            -22,
            "Invalid block size",
        ),
        (
            "thin_pool_create",
            &pool(r#""features":["x"]"#),
            -22,
            "Unrecognised",
        ),
        ("thin_pool_create", &all_features, -22, "at most 4"),
        (
            "era_create",
            r#"{"name":"e","metadata_bdev":"m","origin_bdev":"o","block_size_sectors":12}"#,
            -22,
            "Invalid block size",
        ),
        (
            "era_create",
            r#"{"name":"e","metadata_bdev":"o","origin_bdev":"o"}"#,
            -22,
            "both be bdev 'o'",
        ),
        (
            "era_create",
            r#"{"name":"o","metadata_bdev":"m","origin_bdev":"o"}"#,
            -22,
            "on itself",
        ),
        (
            "era_written_since",
            r#"{"name":"e","era":1,"file":"x"}"#,
            -22,
            "begins with /",
        ),
        (
            "era_written_since",
            r#"{"name":"e","era":1,"file":"/x","limit":3}"#,
            -22,
            "'limit'",
        ),
        // These were refused only after the thin device had been created.
        (
            "thin_create",
            r#"{"pool":"p","id":1,"size_mib":0}"#,
            -22,
            "above 0",
        ),
        (
            "thin_create",
            r#"{"pool":"p","id":1,"size_mib":18446744073709551615}"#,
            -22,
            "size_mib",
        ),
        ("thin_create", &long_name, -22, "not a bdev name"),
    ] {
        let error = call(method, params).unwrap_err();
        assert_eq!(error.code, code, "{method} {params}: {}", error.message);
        assert!(
            error.message.contains(words),
            "{method} {params}: {}",
            error.message
        );
    }
}

/// The status seen on a kernel (thin.md 13), nothing mapped, and numbers only a damaged device has.
#[test]
fn thin_status_lines() {
    let line = |mapped_blocks, highest_mapped_block| {
        let status = ThinStatus {
            mapped_blocks,
            highest_mapped_block,
            block_sectors: 128,
        };
        let json = rpc::status::thin_json(&status);
        assert!(json["mapped_sectors"].is_u64());
        assert_eq!(
            json["highest_mapped_sector"].is_u64(),
            highest_mapped_block.is_some()
        );
        rpc::status::thin_line(&status)
    };
    assert_eq!(line(10, Some(12)), "1280 1663");
    assert_eq!(line(0, None), "0 -");
    line(u64::MAX, Some(u64::MAX));
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        "[a-z0-9_]{1,8}".prop_map(Value::from),
        "0 [0-9]{1,20} thin(-pool)? [a-z0-9 ]{0,30}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z_]{0,8}", inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
}

proptest! {
    /// Any value for any parameter of any method is an answer or a refusal with a text.
    #[test]
    fn any_parameters_are_answered(
        values in prop::collection::vec(prop::option::of(any_json()), 10),
    ) {
        for method in METHODS {
            let params: serde_json::Map<_, _> = method.parameters.iter().zip(&values)
                .filter_map(|(p, value)| Some((p.name.to_owned(), value.clone()?)))
                .collect();
            if let Err(error) = call(method.name, &Value::from(params).to_string()) {
                prop_assert!(error.code < 0 && !error.message.is_empty());
            }
        }
    }

    /// Any text at all, too.
    #[test]
    fn any_text_is_answered(text in ".{0,40}", json in any_json()) {
        for method in method_names() {
            let _ = call(method, &text);
            let _ = call(method, &json.to_string());
        }
    }
}
