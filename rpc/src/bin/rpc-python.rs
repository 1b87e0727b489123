//! Prints the `rpc.py` plugin.

fn main() {
    print!("{}", rpc::python::module());
}
