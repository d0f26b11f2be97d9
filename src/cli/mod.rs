//! The command line: one file per command, and what they share.
//!
//! A file uses only files named before it (`tests/floors.rs` checks it).
//! Order: `terminal_text`, `messages`, `text_warnings`, `list_options`, `interrupts`, `history`, `line_editor`, `output`, `repositories`, `args`, `generate`, `conversation`,
//! `setup_labels`, `plot`, `devices`, `json_answer`, `run`, `chat_lines`, `chat`, `robots`, `similarity`, `search`, `eval`, `perplexity`, `check`, `bench`,
//! `report`, `compare`, `inspect`, `convert`, `completions`, `version`.
//!
//! Text that a model writes and tables go to stdout, everything else to stderr. Exit codes: 0, 1 where a check found a
//! divergence, 2 for an error; 130 where Ctrl-C ends a command, as shells report it.

mod args;
mod bench;
mod chat;
mod chat_lines;
mod check;
mod compare;
mod completions;
mod conversation;
mod convert;
mod devices;
mod eval;
mod generate;
mod history;
mod inspect;
mod interrupts;
mod json_answer;
mod line_editor;
mod list_options;
mod messages;
mod output;
mod perplexity;
mod plot;
mod report;
mod repositories;
mod robots;
mod run;
mod search;
mod setup_labels;
mod similarity;
mod terminal_text;
mod text_warnings;
mod version;

use std::env;
use std::error::Error as _;
use std::io;
use std::panic;
use std::path::Path;
use std::process::ExitCode;

use clap::{ArgAction, CommandFactory, Parser, Subcommand};
use env_logger::Target;
use messages::complain;
use output::BesideBars;
use terminal_text::{advice, message, on_command_line};
use ternion::files::panic_is_contained;

/// Runs ternary (BitNet b1.58) language and vision-language models on any GPU, or on the CPU.
#[derive(Debug, Parser)]
#[command(
    name = "ternion",
    version = version::short(),
    long_version = version::long(),
    about,
    after_help = "Example: ternion run --image examples/shapes/samples/spatial_scene_100000.png -p 'What color is the circle?'\n\
                  Example: ternion run -m models/embernet --image cat.png -p 'What is in the picture?'\n\
                  The environment variable RUST_LOG sets what is logged, for example RUST_LOG=ternion=debug."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print statistics and progress to stderr.
    #[arg(short, long, global = true, action = ArgAction::SetTrue)]
    verbose: bool,
    /// Write nothing but errors to stderr.
    #[arg(short, long, global = true, action = ArgAction::SetTrue, conflicts_with = "verbose")]
    quiet: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Run),
    Chat(chat::Chat),
    Convert(convert::Convert),
    Inspect(inspect::Inspect),
    Devices(devices::Devices),
    Check(check::Check),
    Report(report::Report),
    Eval(eval::Eval),
    Perplexity(perplexity::Perplexity),
    Robots(robots::Robots),
    Bench(bench::Bench),
    Compare(compare::Compare),
    Similarity(similarity::Similarity),
    Search(search::Search),
    Completions(completions::Completions),
    Man(completions::Man),
}

/// Why a command ends early.
#[derive(Debug)]
pub enum Failure {
    /// Something is wrong with the input or the device.
    Error(ternion::Error),
    /// Stdout cannot be written.
    Output(io::Error),
    /// A check found a divergence and has reported it.
    Diverged,
    /// Errors that were printed when they happened.
    Reported,
    /// Ctrl-C: twice at the prompt of a chat; in a command that has kept or printed what there was.
    Interrupted,
}

/// The exit code for [`Failure::Interrupted`]: what a shell reports of a command that Ctrl-C has ended.
const INTERRUPTED: u8 = 130;

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
    set_runtime_dir();
    report_own_panics();
    let cli = Cli::parse_from(list_options::separate_values(env::args_os()));
    start_log(cli.verbose, cli.quiet);
    let outcome = match cli.command {
        Command::Run(run) => run.main(cli.verbose),
        Command::Chat(chat) => chat.main(cli.verbose),
        Command::Convert(convert) => convert.main(),
        Command::Inspect(inspect) => inspect.main(),
        Command::Devices(devices) => devices.main(),
        Command::Check(check) => check.main(),
        Command::Report(report) => report.main(),
        Command::Eval(eval) => eval.main(),
        Command::Perplexity(perplexity) => perplexity.main(),
        Command::Robots(robots) => robots.main(),
        Command::Bench(bench) => bench.main(),
        Command::Compare(compare) => compare.main(),
        Command::Similarity(similarity) => similarity.main(),
        Command::Search(search) => search.main(),
        Command::Completions(completions) => completions.main(Cli::command()),
        Command::Man(man) => man.main(Cli::command()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever closed the pipe has read enough.
        Err(Failure::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(Failure::Output(e)) => {
            complain!("error: stdout: {e}");
            ExitCode::from(2)
        }
        Err(Failure::Error(ternion::Error::Cancelled(_))) if interrupts::came() => ExitCode::from(INTERRUPTED),
        Err(Failure::Error(error)) => {
            print_error(&error);
            ExitCode::from(2)
        }
        Err(Failure::Diverged) => ExitCode::from(1),
        Err(Failure::Reported) => ExitCode::from(2),
        Err(Failure::Interrupted) => ExitCode::from(INTERRUPTED),
    }
}

/// Reports panics as ever, but for those of libraries that become errors, which are reported as such.
fn report_own_panics() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if !panic_is_contained() {
            report(info);
        }
    }));
}

/// Gives the process an XDG_RUNTIME_DIR where it has no valid one, as on machines without a desktop.
///
/// Graphics drivers look for a Wayland display whenever they list adapters, and without that variable the library of
/// Wayland prints "error: XDG_RUNTIME_DIR is invalid or not set in the environment." each time, in the form of this
/// program's own errors. In a folder that cannot exist it finds no display and says nothing.
fn set_runtime_dir() {
    let valid = env::var_os("XDG_RUNTIME_DIR").is_some_and(|dir| Path::new(&dir).is_absolute());
    if cfg!(unix) && !valid {
        // SAFETY: the program begins with this, so no other thread exists that could read the environment meanwhile.
        unsafe { env::set_var("XDG_RUNTIME_DIR", "/dev/null") };
    }
}

/// Prints an error on one line, a line for each cause, and one with what to do.
fn print_error(error: &ternion::Error) {
    print_error_with(error, advice(error));
}

/// [`print_error`] with other advice.
fn print_error_with(error: &ternion::Error, advice: Option<&str>) {
    complain!("error: {}", message(&on_command_line(&error.to_string())));
    let mut cause = error.source();
    while let Some(error) = cause {
        complain!("caused by: {}", message(&error.to_string()));
        cause = error.source();
    }
    if let Some(advice) = advice {
        complain!("advice: {advice}");
    }
}

/// Logs to stderr; graphics libraries stay silent unless `RUST_LOG` asks for them, since their errors are returned.
fn start_log(verbose: bool, quiet: bool) {
    if quiet {
        messages::be_quiet();
    }
    if verbose {
        messages::be_verbose();
    }
    let level = if verbose {
        "info"
    } else if quiet {
        "error"
    } else {
        "warn"
    };
    let default = format!("{level},wgpu_hal=off,wgpu_core=error,naga=error");
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(default))
        .format_target(false)
        .target(Target::Pipe(Box::new(BesideBars)))
        .init();
}
