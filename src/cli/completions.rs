//! `ternion completions` and `ternion man`: what shells and readers of manuals need.

use std::io::{self, Write};

use clap::{Args, Command};
use clap_complete::Shell;

use crate::cli::Outcome;

/// Print the completions of a shell: names of commands, options and values behind the Tab key.
#[derive(Debug, Args)]
#[command(after_help = "Example: ternion completions bash > ~/.local/share/bash-completion/completions/ternion\n\
                        Example: ternion completions zsh > ~/.zfunc/_ternion")]
pub struct Completions {
    /// The shell.
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

impl Completions {
    /// Runs the command, for the program `command`.
    ///
    /// # Errors
    /// Those of writing to stdout.
    pub fn main(&self, mut command: Command) -> Outcome {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut command, "ternion", &mut text);
        Ok(io::stdout().lock().write_all(&text)?)
    }
}

/// Print the manual page, of the program or of one of its commands.
#[derive(Debug, Args)]
#[command(after_help = "Example: ternion man > ~/.local/share/man/man1/ternion.1\n\
                        Example: ternion man run | man -l -")]
pub struct Man {
    /// The command; default: the program.
    #[arg(value_name = "COMMAND")]
    of: Option<String>,
}

impl Man {
    /// Runs the command, for the program `command`.
    ///
    /// # Errors
    /// [`ternion::Error::Argument`] for a command that there is not; those of writing to stdout.
    pub fn main(&self, mut command: Command) -> Outcome {
        command.build();
        let page = match &self.of {
            None => command,
            Some(name) => command.find_subcommand(name).cloned().ok_or_else(|| {
                let problem = format!("is {name:?}, which is none; `ternion --help` lists them");
                ternion::Error::argument("command", problem)
            })?,
        };
        let mut text = Vec::new();
        clap_mangen::Man::new(page).render(&mut text)?;
        Ok(io::stdout().lock().write_all(&text)?)
    }
}
