//! What the definition of the command line gives besides the command line: completion scripts and manual pages.

use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::error::Error;

/// The script that completes commands and flags in a shell.
#[must_use]
pub fn completions(shell: Shell) -> String {
    let mut command = Cli::command();
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// Writes a page for the program and one for each command, `quantc.1`, `quantc-quantize.1`, ...
///
/// # Errors
/// The system's.
pub fn write_manuals(directory: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(directory).map_err(Error::io(directory))?;
    clap_mangen::generate_to(Cli::command(), directory).map_err(Error::io(directory))
}
