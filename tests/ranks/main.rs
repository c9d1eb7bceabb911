//! Several ranks write the bytes of one process: here each is a thread. Over MPI it is `tests/mpi.rs`.

mod jobs;

use std::path::Path;
use std::sync::Arc;

use clap::FromArgMatches;
use kernels::ranks::{Alone, Ranks, threads};
use quantc::cli::{self, Cli, Command};
use quantc::job::QuantizeJob;
use quantc::progress::Silent;

use jobs::{JOBS, Job, demand_same, with_least_memory};

fn parsed(arguments: &[String]) -> QuantizeJob {
    let words = std::iter::once("quantc").chain(arguments.iter().map(String::as_str));
    let cli = cli::command().try_get_matches_from(words).and_then(|found| Cli::from_arg_matches(&found));
    match cli.unwrap().command {
        Command::Quantize(arguments) => arguments.into_job().unwrap(),
        _ => unreachable!("the command is quantize"),
    }
}

/// The job in `folder`.
fn job(job: &Job, folder: &Path) -> QuantizeJob {
    let refusal =
        |arguments: &[String]| quantc::quantize(&parsed(arguments), &Silent).unwrap_err().to_string();
    parsed(&with_least_memory(job.arguments(folder), refusal))
}

/// Runs it, and gives rank 0's reports.
fn run(job: &QuantizeJob, ranks: Vec<Arc<dyn Ranks>>) -> Vec<quantc::report::Report> {
    std::thread::scope(|scope| {
        let run = |ranks| scope.spawn(move || quantc::quantize_among(job, &ranks, &Silent).unwrap());
        let mut runs: Vec<_> = ranks.into_iter().map(run).collect();
        let first = runs.remove(0).join().unwrap();
        assert!(runs.into_iter().all(|run| run.join().unwrap().is_empty()), "reports are rank 0's");
        first
    })
}

#[test]
fn bytes_do_not_depend_on_the_number_of_ranks() {
    for (number, of) in JOBS.iter().enumerate() {
        let alone = tempfile::tempdir().unwrap();
        run(&job(of, alone.path()), vec![Alone::ranks()]);
        // More ranks than windows too.
        let sizes = [&[2, 3][..], &[7], &[3], &[2], &[3], &[2]][number];
        for &size in sizes {
            let folder = tempfile::tempdir().unwrap();
            let reports = run(&job(of, folder.path()), threads(size));
            demand_same(&format!("{}, {size} ranks", of.name), folder.path(), alone.path());
            let costs = &reports[0].ranks;
            assert_eq!(costs.iter().map(|cost| cost.rank).collect::<Vec<_>>(), (0..size).collect::<Vec<_>>());
            assert!(costs.iter().all(|cost| cost.sent_bytes > 0 && cost.received_bytes > 0), "{costs:?}");
        }
    }
}

#[test]
fn a_journal_of_one_process_is_not_gone_on_from() {
    let folder = tempfile::tempdir().unwrap();
    let job = QuantizeJob { fresh: false, ..job(&JOBS[0], folder.path()) };
    let journal = folder.path().join(".out.journal");
    std::fs::create_dir(&journal).unwrap();
    std::fs::write(journal.join("gradients"), "of one process").unwrap();
    let mut ranks = threads(2);
    let error = quantc::quantize_among(&job, &ranks.remove(0), &Silent).unwrap_err();
    assert!(
        error.to_string().contains(".out.journal") && error.to_string().contains("one process"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("--fresh"));
    assert!(journal.join("gradients").exists());
    // A rank whose peers are gone ends with an error.
    let error = quantc::quantize_among(&job, &ranks[0], &Silent).unwrap_err();
    assert!(error.to_string().contains("rank 0"), "{error}");
    assert!(!folder.path().join(".out.journal-1").exists());
}

#[test]
fn a_rank_that_would_do_something_else_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(&JOBS[0], folder.path());
    let mut other = job.clone();
    other.calibration_windows.samples = 4;
    let errors: Vec<_> = std::thread::scope(|scope| {
        let runs: Vec<_> = threads(2)
            .into_iter()
            .zip([&job, &other])
            .map(|(ranks, job)| {
                scope.spawn(move || quantc::quantize_among(job, &ranks, &Silent).unwrap_err().to_string())
            })
            .collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    assert!(errors[0].contains("rank 1"), "{errors:?}");
    assert!(errors[1].contains("--samples is 5, and here 4"), "{errors:?}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "what tests wrote alone is left");
}
