//! Parse, run, print the report to standard output and the error chain to standard error.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use quantc::cli::{Cli, Command, RunArgs};
use quantc::error::Error;
use quantc::progress::Terminal;
use quantc::render::text;
use serde::Serialize;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            // A closed pipe is no reason to complain about the help text.
            let _ = error.print();
            return ExitCode::from(u8::from(!asked));
        }
    };
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            if let Some(hint) = error.hint() {
                eprintln!("hint: {hint}");
            }
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(command: Command) -> Result<(), Error> {
    match command {
        Command::Quantize(arguments) => {
            let export = prepare(arguments.run())?;
            let report = quantc::quantize(&arguments.into_job()?, &Terminal::default())?;
            export_json(export.as_deref(), &report)?;
            print(&text::report(&report))
        }
        Command::Evaluate(arguments) => {
            let export = prepare(arguments.run())?;
            let report = quantc::evaluate(&arguments.into_job()?, &Terminal::default())?;
            export_json(export.as_deref(), &report)?;
            print(&text::evaluate(&report))
        }
        Command::Verify(arguments) => {
            let export = prepare(&arguments.common)?;
            let found = quantc::verify::verify(&arguments.directory, &Terminal::default())?;
            export_json(export.as_deref(), &found)?;
            print(&format!("{}\n", text::verification(&found)))?;
            if found.problems.is_empty() { Ok(()) } else { Err(Error::Verification(Box::new(found))) }
        }
        Command::Inspect(arguments) => {
            let export = prepare(&arguments.common)?;
            let found = quantc::inspect::inspect(&arguments.directory)?;
            export_json(export.as_deref(), &found)?;
            print(&text::inspection(&found))
        }
        Command::List { what } => print(&quantc::listing::list(what)),
    }
}

/// Sets the number of threads and returns where the JSON goes.
fn prepare(run: &RunArgs) -> Result<Option<std::path::PathBuf>, Error> {
    if run.threads == Some(0) {
        return Err(Error::Argument {
            flag: "--threads",
            problem: "expected at least 1, found 0".to_owned(),
        });
    }
    if let Some(threads) = run.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build_global().map_err(|e| Error::Internal(e.to_string()))?;
    }
    if let Some(parent) = run.export_json.as_deref().and_then(Path::parent)
        && !parent.as_os_str().is_empty()
        && !parent.is_dir()
    {
        let problem = format!("there is no directory `{}`", parent.display());
        return Err(Error::Argument { flag: "--export-json", problem });
    }
    Ok(run.export_json.clone())
}

fn export_json(path: Option<&Path>, report: &impl Serialize) -> Result<(), Error> {
    let Some(path) = path else { return Ok(()) };
    let mut json = serde_json::to_string_pretty(report).map_err(|e| Error::Internal(e.to_string()))?;
    json.push('\n');
    std::fs::write(path, json).map_err(|source| Error::Io { path: path.to_owned(), source })
}

/// Prints, and takes a closed pipe for the end of interest.
fn print(text: &str) -> Result<(), Error> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::Io { path: "standard output".into(), source: error })
        }
        _ => Ok(()),
    }
}
