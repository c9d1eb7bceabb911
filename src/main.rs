//! Parse, run, print the report to standard output and the error chain to standard error.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::FromArgMatches;
use clap::error::ErrorKind;
use kernels::ranks::{Alone, Failure, Ranks};
use quantc::cli::{self, Cli, Command, RunArgs};
use quantc::error::Error;
use quantc::export::ExportFile;
use quantc::generate::Speaker;
use quantc::progress::{LogFormat, Silent, Terminal, Verbosity, printable};
use quantc::render::comparison::comparison;
use quantc::render::text;
use serde::Serialize;

fn main() -> ExitCode {
    kernels::allocation::keep_freed_memory();
    let print_panic = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // These become errors.
        if !calibration::foreign::is_inside() {
            print_panic(panic);
        }
    }));
    let ranks = match ranks() {
        Ok(ranks) => ranks,
        Err(error) => {
            Terminal::default().fail(&error);
            return ExitCode::from(error.exit_code());
        }
    };
    let read = cli::command().try_get_matches().and_then(|found| Cli::from_arg_matches(&found));
    let cli = match read {
        Ok(cli) => cli,
        Err(error) => {
            if ranks.is_first() {
                let asked = is_asked_for(&error);
                unread(&error, asked);
                let failure = Failure { code: 1, problem: error.to_string(), rank: 0 };
                return ending(ranks.end((!asked).then_some(failure)));
            }
            let problem = "its command line is not one of `quantize`".to_owned();
            return ending(ranks.end(Some(Failure { code: 1, problem, rank: ranks.rank() })));
        }
    };
    let terminal = cli.log.terminal();
    let known = cli.architecture.as_deref().map_or(Ok(()), quantc::described::add_architecture);
    let ready = known.and_then(|()| start_threads(cli.command.threads()));
    let done = ready.and_then(|()| on_a_thread_of_the_pool(|| run(cli.command, &ranks, &terminal)));
    let error = match done {
        // Whoever reads has read enough.
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::BrokenPipe => None,
        done => done.err(),
    };
    let own = error.as_ref().map(|error| Failure {
        code: error.exit_code(),
        problem: error.to_string(),
        rank: ranks.rank(),
    });
    // Rank 0 speaks for all, and before the others are told to end.
    let ended = ranks.known_failure().filter(|_| own.is_some()).or(own);
    match (&error, &ended) {
        _ if !ranks.is_first() => {}
        (_, Some(Failure { rank, problem, .. })) if *rank != 0 => {
            terminal.fail(&Error::Ranks(std::io::Error::other(format!(
                "rank {rank} of {}: {problem}",
                ranks.size()
            ))));
        }
        (Some(error), _) => terminal.fail(error),
        _ => {}
    }
    ending(ranks.end(ended))
}

fn ending(failure: Option<Failure>) -> ExitCode {
    failure.map_or(ExitCode::SUCCESS, |failure| ExitCode::from(failure.code))
}

/// The processes of this run: those that it was started with by MPI, or itself alone.
fn ranks() -> Result<Arc<dyn Ranks>, Error> {
    #[cfg(feature = "mpi")]
    if let Some(ranks) = quantc::over_mpi::join()? {
        return Ok(ranks);
    }
    Ok(Alone::ranks())
}

/// Ends without a command: with what was asked for, as help, or with what is wrong.
fn unread(error: &clap::Error, asked: bool) {
    let words: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    if !asked && cli::asks_for_json(&words) {
        Terminal::new(Verbosity::Normal, LogFormat::Json).fail(&cli::unreadable(error));
    } else {
        // A closed pipe is no reason to complain about the help text.
        let _ = error.print();
    }
}

/// Whether it is no error but what was asked for.
fn is_asked_for(error: &clap::Error) -> bool {
    matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion)
}

fn run(command: Command, ranks: &Arc<dyn Ranks>, terminal: &Terminal) -> Result<(), Error> {
    match command {
        // What is told and written is rank 0's.
        Command::Quantize(arguments) if !ranks.is_first() => {
            quantc::quantize_among(&arguments.into_job()?, ranks, &Silent).map(drop)
        }
        _ if !ranks.is_alone() && !matches!(command, Command::Quantize(_)) => {
            let problem = format!(
                "{} processes were started, and only `quantize` is the work of several",
                ranks.size()
            );
            Err(Error::CommandLine { problem, hint: None })
        }
        Command::Quantize(arguments) => {
            let export = prepare(arguments.run())?;
            let job = arguments.into_job()?;
            if let Some(export) = &export {
                export.demand_outside("--export-json", &job.output)?;
            }
            let reports = quantc::quantize_among(&job, ranks, listening(terminal)?)?;
            tell(export.as_ref(), &text::reports(&reports))?;
            match reports.as_slice() {
                [report] => export_json(export, report),
                several => export_json(export, &several),
            }
        }
        Command::Plan(arguments) => {
            let export = prepare(arguments.quantize().run())?;
            let report = quantc::planning::plan(&arguments.into_job()?, listening(terminal)?)?;
            tell(export.as_ref(), &quantc::render::plan::plan(&report))?;
            export_json(export, &report)
        }
        Command::Convert(arguments) => {
            let export = prepare(&arguments.common)?;
            let job = arguments.into_job();
            if let Some(export) = &export {
                export.demand_outside("--export-json", &job.output)?;
            }
            let report = quantc::convert(&job, listening(terminal)?)?;
            tell(export.as_ref(), &text::conversion(&report))?;
            export_json(export, &report)
        }
        Command::Evaluate(arguments) => {
            let export = prepare(arguments.run())?;
            let report = quantc::evaluate(&arguments.into_job()?, listening(terminal)?)?;
            tell(export.as_ref(), &text::evaluate(&report))?;
            export_json(export, &report)
        }
        Command::Compare(arguments) => {
            let export = prepare(arguments.run())?;
            let report = quantc::compare(&arguments.into_job()?, listening(terminal)?)?;
            tell(export.as_ref(), &comparison(&report))?;
            export_json(export, &report)
        }
        Command::Generate(arguments) => {
            let mut job = arguments.job()?;
            job.model = model_directory(&job.model, terminal)?;
            quantc::generate::generate(&job, &mut Speaker::new(arguments.prompt, listening(terminal)?)?)
        }
        Command::Verify(arguments) => {
            let export = prepare(&arguments.common)?;
            let directory = model_directory(&arguments.directory, terminal)?;
            let found = quantc::verify::verify(&directory, arguments.memory, terminal)?;
            tell(export.as_ref(), &format!("{}\n", text::verification(&found)))?;
            export_json(export, &found)?;
            if found.problems.is_empty() { Ok(()) } else { Err(Error::Verification(Box::new(found))) }
        }
        Command::Inspect(arguments) => {
            let export = prepare(&arguments.common)?;
            let found = quantc::inspect::inspect(&model_directory(&arguments.directory, terminal)?)?;
            tell(export.as_ref(), &text::inspection(&found))?;
            export_json(export, &found)
        }
        Command::Completions { shell } => print(&quantc::completions::completions(shell)),
        Command::Man { directory } => quantc::manuals::write_manuals(&directory),
        Command::List { what } => print(&quantc::listing::list(what)),
    }
}

/// A directory of this machine, or of the hub.
fn model_directory(model: &Path, terminal: &Terminal) -> Result<PathBuf, Error> {
    quantc::hub::model_directory(model, terminal)
}

/// The same, which also hears signals.
fn listening(terminal: &Terminal) -> Result<&Terminal, Error> {
    terminal.listen()?;
    Ok(terminal)
}

/// More threads than any machine has processors; starting them would take longer than the work.
const MOST_THREADS: usize = 1024;

/// Opens the file that the JSON goes to: better now than after the work.
fn prepare(run: &RunArgs) -> Result<Option<ExportFile>, Error> {
    let create = |path: &Path| match path.as_os_str() == "-" {
        true => Ok(ExportFile::standard_output()),
        false => ExportFile::create("--export-json", path),
    };
    run.export_json.as_deref().map(create).transpose()
}

/// As much as a program's first thread has.
const STACK: usize = 8 << 20;

fn start_threads(threads: Option<usize>) -> Result<(), Error> {
    let problem = match threads {
        Some(0) => Some("expected at least 1, found 0".to_owned()),
        Some(threads) if threads > MOST_THREADS => {
            Some(format!("expected at most {MOST_THREADS}, found {threads}"))
        }
        _ => None,
    };
    if let Some(problem) = problem {
        return Err(Error::Argument { flag: "--threads", problem });
    }
    // None asked for: one for each processor.
    let pool = rayon::ThreadPoolBuilder::new().stack_size(STACK).num_threads(threads.unwrap_or(0));
    pool.build_global().map_err(|e| Error::Internal(e.to_string()))
}

/// Runs all of the work on one of the threads that share it: what it hands out to them then needs no signal between threads, where it is small.
fn on_a_thread_of_the_pool<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let mut done = None;
    rayon::scope(|_| done = Some(work()));
    done.expect("a scope ends when its work is done")
}

fn export_json(file: Option<ExportFile>, report: &impl Serialize) -> Result<(), Error> {
    let Some(mut file) = file else { return Ok(()) };
    let mut json = serde_json::to_string_pretty(report).map_err(|e| Error::Internal(e.to_string()))?;
    json.push('\n');
    file.write(json.as_bytes())?;
    file.finish()
}

/// Prints a report, unless standard output is for the other form of it.
fn tell(export: Option<&ExportFile>, text: &str) -> Result<(), Error> {
    if export.is_some_and(ExportFile::is_standard_output) { Ok(()) } else { print(text) }
}

/// Prints, and takes a closed pipe for the end of interest.
fn print(text: &str) -> Result<(), Error> {
    match std::io::stdout().lock().write_all(printable(text).as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::Io { path: "standard output".into(), source: error })
        }
        _ => Ok(()),
    }
}
