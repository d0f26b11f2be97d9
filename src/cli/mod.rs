//! The command line: one file a command, and what they share.
//!
//! Text that a model writes and tables go to stdout, everything else to stderr. Exit codes: 0, 1 where a check found a
//! divergence, 2 for an error.

mod args;
mod bench;
mod bitgen_args;
mod chat;
mod check;
mod convert;
mod devices;
mod eval;
mod inspect;
mod output;
mod plot;
mod robots;
mod run;
mod search;
mod similarity;
mod text_warnings;

use std::error::Error as _;
use std::io;
use std::process::ExitCode;

use clap::{ArgAction, Parser, Subcommand};

/// Runs ternary (BitNet b1.58) language and vision-language models on any GPU, or on the CPU.
#[derive(Debug, Parser)]
#[command(
    name = "ternion",
    version,
    about,
    after_help = "Example: ternion run --image examples/shapes/samples/spatial_scene_100000.png -p 'What color is the circle?'\n\
                  Example: ternion run -m models/embernet --image cat.png -p 'What is in the picture?'\n\
                  The environment variable RUST_LOG sets what is logged, for example RUST_LOG=ternion=debug."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print statistics and what is going on to stderr.
    #[arg(short, long, global = true, action = ArgAction::SetTrue)]
    verbose: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Run),
    Chat(chat::Chat),
    Convert(convert::Convert),
    Inspect(inspect::Inspect),
    Devices(devices::Devices),
    Check(check::Check),
    Eval(eval::Eval),
    Robots(robots::Robots),
    Bench(bench::Bench),
    Similarity(similarity::Similarity),
    Search(search::Search),
}

/// Why a command ends early.
#[derive(Debug)]
pub enum Failure {
    /// Something is wrong with the input or the device.
    Error(ternion::Error),
    /// Stdout cannot be written.
    Output(io::Error),
    /// A check found a divergence, and has said so.
    Diverged,
    /// Errors that were printed when they happened.
    Reported,
}

/// The result of a command.
pub type Outcome<T = ()> = Result<T, Failure>;

impl From<ternion::Error> for Failure {
    fn from(error: ternion::Error) -> Self {
        Failure::Error(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Output(error)
    }
}

/// Runs the command that the arguments ask for.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    start_log(cli.verbose);
    let outcome = match cli.command {
        Command::Run(run) => run.main(cli.verbose),
        Command::Chat(chat) => chat.main(cli.verbose),
        Command::Convert(convert) => convert.main(),
        Command::Inspect(inspect) => inspect.main(),
        Command::Devices(devices) => devices.main(),
        Command::Check(check) => check.main(),
        Command::Eval(eval) => eval.main(),
        Command::Robots(robots) => robots.main(),
        Command::Bench(bench) => bench.main(),
        Command::Similarity(similarity) => similarity.main(),
        Command::Search(search) => search.main(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever closed the pipe has read enough.
        Err(Failure::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(Failure::Output(e)) => {
            eprintln!("error: stdout: {e}");
            ExitCode::from(2)
        }
        Err(Failure::Error(error)) => {
            report(&error);
            ExitCode::from(2)
        }
        Err(Failure::Diverged) => ExitCode::from(1),
        Err(Failure::Reported) => ExitCode::from(2),
    }
}

/// Prints an error on one line, and a line for each cause.
fn report(error: &ternion::Error) {
    eprintln!("error: {}", one_line(&error.to_string()));
    let mut cause = error.source();
    while let Some(error) = cause {
        eprintln!("caused by: {}", one_line(&error.to_string()));
        cause = error.source();
    }
}

/// Drivers and shader compilers put line breaks into their messages.
fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Logs to stderr; graphics libraries stay silent unless `RUST_LOG` asks for them, since their errors are returned.
fn start_log(verbose: bool) {
    let level = if verbose { "info" } else { "warn" };
    let default = format!("{level},wgpu_hal=off,wgpu_core=error,naga=error");
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(default)).format_target(false).init();
}
