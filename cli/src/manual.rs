//! Shell completions and manual pages, made from what the program's own help says.

use crate::error::CliError;
use crate::output::Output;
use clap::{Args, CommandFactory};
use clap_complete::Shell;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Arguments.
#[derive(Args)]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Arguments.
#[derive(Args)]
pub struct ManArgs {
    /// Existing folder for the pages: spdk-dm.1, spdk-dm-thin.1, …
    folder: PathBuf,
}

impl CompletionsArgs {
    /// Prints completions.
    pub fn run(&self) -> Result<bool, CliError> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut crate::Cli::command(), "spdk-dm", &mut text);
        let mut output = Output::open(None)?;
        let written = output.out.write_all(&text);
        written
            .and_then(|()| output.out.flush())
            .map_err(CliError::io(&output.path))?;
        Ok(true)
    }
}

impl ManArgs {
    /// Writes the pages.
    pub fn run(&self) -> Result<bool, CliError> {
        let mut command = crate::Cli::command().name("spdk-dm");
        command.build();
        write_pages(&command, &self.folder)?;
        Ok(true)
    }
}

/// Writes the page of a command and those of its verbs.
fn write_pages(command: &clap::Command, folder: &Path) -> Result<(), CliError> {
    let page = clap_mangen::Man::new(command.clone());
    let path = folder.join(page.get_filename());
    let mut text = Vec::new();
    page.render(&mut text)
        .and_then(|()| std::fs::write(&path, text))
        .map_err(CliError::io(&path))?;
    let verbs = command.get_subcommands();
    for verb in verbs.filter(|verb| !verb.is_hide_set() && verb.get_name() != "help") {
        write_pages(verb, folder)?;
    }
    Ok(())
}
