//! JSON-RPC calls: any method with any text for parameters.

use async_trait::async_trait;
use futures::executor::block_on;
use rpc::dispatch::{Answer, Backend, dispatch, method_names};
use rpc::params::*;
use serde_json::to_value;

/// Answers each call with its own parameters.
struct Echo;

macro_rules! echo {
    ($($function:ident: $params:ident),* $(,)?) => {
        #[async_trait(?Send)]
        impl Backend for Echo {
            $(async fn $function(&self, params: $params) -> Answer {
                Ok(to_value(params).expect("parameters can be written"))
            })*
        }
    };
}

rpc::for_each_method!(echo);

/// Runs one input: the first byte chooses the method. What is accepted is accepted again as it was
/// understood, with the same meaning.
pub fn run(data: &[u8]) {
    let Some((which, params)) = data.split_first() else {
        return;
    };
    let names = method_names();
    let method = names
        .get(usize::from(*which))
        .copied()
        .unwrap_or("no_such_method");
    let params = String::from_utf8_lossy(params);
    match block_on(dispatch(&Echo, method, &params)) {
        Ok(answer) => {
            let again = block_on(dispatch(&Echo, method, &answer));
            assert_eq!(again.as_ref(), Ok(&answer));
        }
        Err(error) => {
            assert!([-32602, -32601, -22].contains(&error.code), "{error:?}");
            assert!(!error.message.is_empty());
        }
    }
}
