//! The binary `addenda`: the daemon and the command line in one.

fn main() -> std::process::ExitCode {
    addenda::cli::main()
}
