//! The `ternion` command: runs, converts, inspects and checks ternary models.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
