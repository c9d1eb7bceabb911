//! Runtimes that the output must load in: known before hours of work, not after.

use formats::target::{LoaderRule, shard};
use model::Model;

use crate::error::Error;
use crate::job::QuantizeJob;
use crate::plan::Plan;

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
        let called = |rule: &&LoaderRule| rule.runtime.to_lowercase().starts_with(&name.to_lowercase());
        let rules: Vec<&LoaderRule> = rules.iter().filter(called).collect();
        if rules.is_empty() {
            let known: Vec<&str> = plan.format.loaders().iter().map(|rule| rule.runtime).collect();
            let problem = format!("no loader of {format} is called `{name}`; known are {}", known.join(", "));
            return refuse("--runs-on", problem);
        }
        demand_one("--runs-on", name, &rules)?;
    }
    if job.runs_on.is_empty() {
        demand_one("--tensor-parallel", "every runtime", &rules.iter().collect::<Vec<_>>())?;
    }
    Ok(())
}
