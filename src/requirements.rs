//! Runtimes that the output must load in: known before hours of work, not after.

use formats::target::{self, LoaderRule, TargetFormat, shard};
use model::Model;

use crate::error::Error;
use crate::job::QuantizeJob;
use crate::plan::Plan;

/// Whether a loader is of the runtime that somebody calls `name`: of the one of that name where there is one, or else of any that begins so.
fn is_called(rule: &LoaderRule, name: &str) -> bool {
    let name = name.to_lowercase();
    let called =
        |rule: &LoaderRule| rule.runtime.split(' ').next().is_some_and(|own| own.to_lowercase() == name);
    if target::all().flat_map(TargetFormat::loaders).any(called) {
        return called(rule);
    }
    !name.is_empty() && rule.runtime.to_lowercase().starts_with(&name)
}

/// Fails where a runtime was asked for that loads none of the outputs' formats, whatever is in them.
pub(crate) fn demand_known(job: &QuantizeJob, plans: &[Plan]) -> Result<(), Error> {
    let rules = || plans.iter().flat_map(|plan| plan.format.loaders());
    match job.runs_on.iter().find(|name| !rules().any(|rule| is_called(rule, name))) {
        None => Ok(()),
        Some(name) => {
            let mut known: Vec<&str> = rules().map(|rule| rule.runtime).collect();
            known.dedup();
            let problem =
                format!("no loader of the format is called `{name}`; known are {}", known.join(", "));
            Err(Error::Argument { flag: "--runs-on", problem })
        }
    }
}

/// Fails where a runtime that was asked for would refuse the output, on so many devices as were asked for.
pub(crate) fn demand(job: &QuantizeJob, plan: &Plan, model: &Model) -> Result<(), Error> {
    let parts = job.tensor_parallel;
    if job.runs_on.is_empty() && parts == 1 {
        return Ok(());
    }
    let refuse = |flag, problem: String| Err(Error::Argument { flag, problem });
    let format = plan.format.id();
    let held = match shard(&plan.linears, model, parts) {
        Ok(held) => held,
        Err(problem) => return refuse("--tensor-parallel", problem),
    };
    let rules = plan.format.loaders();
    // A runtime may have several loaders: one that takes the output is enough.
    let demand_one = |flag, name: &str, rules: &[&LoaderRule]| {
        let verdicts: Vec<_> = rules.iter().map(|rule| rule.check(&held)).collect();
        if verdicts.iter().any(|verdict| verdict.loads) {
            return Ok(());
        }
        let reasons: Vec<_> = verdicts.iter().map(|v| format!("{} {}", v.runtime, v.remark)).collect();
        let devices = if parts > 1 { format!(" on {parts} devices") } else { String::new() };
        refuse(flag, format!("{name} would not load {format}{devices}: {}", reasons.join("; ")))
    };
    for name in &job.runs_on {
        let rules: Vec<&LoaderRule> = rules.iter().filter(|rule| is_called(rule, name)).collect();
        // Without any, another output of the job is for it.
        if !rules.is_empty() {
            demand_one("--runs-on", name, &rules)?;
        }
    }
    if job.runs_on.is_empty() {
        demand_one("--tensor-parallel", "every runtime", &rules.iter().collect::<Vec<_>>())?;
    }
    Ok(())
}
