//! Linears that differ from the rest, as GPTQ's configuration says it: `dynamic` patterns on module paths, and lists of modules.

use model::linear::Linear;
use quantizer::scheme::{Scheme, Symmetry};
use serde_json::{Map, Value, json};

use super::super::PlannedLinear;
use super::super::grids::group_size;

/// Linears that differ from the rest, as patterns on module paths: exclusions first, since the first match wins. `routers` are excluded too.
pub(in crate::target) fn dynamic(
    plan: &[PlannedLinear],
    base: Option<Scheme>,
    routers: &[String],
) -> Map<String, Value> {
    let kept: Vec<&Linear> =
        plan.iter().filter(|planned| planned.scheme.is_none()).map(|p| &p.linear).collect();
    let mut rules: Map<String, Value> =
        patterns(&kept).into_iter().map(|pattern| (format!("-:{pattern}"), json!({}))).collect();
    for router in routers {
        rules.insert(format!("-:{}$", regex::escape(router)), json!({}));
    }
    let mut others: Vec<(Scheme, Vec<&Linear>)> = Vec::new();
    for planned in plan {
        match planned.scheme {
            Some(scheme) if Some(scheme) != base => {
                match others.iter_mut().find(|(known, _)| *known == scheme) {
                    Some((_, linears)) => linears.push(&planned.linear),
                    None => others.push((scheme, vec![&planned.linear])),
                }
            }
            _ => {}
        }
    }
    for (scheme, linears) in others {
        let sym = scheme.symmetry == Symmetry::Symmetric;
        let group_size = group_size(scheme);
        let value =
            json!({"bits": scheme.bits.get(), "group_size": group_size, "sym": sym, "desc_act": false});
        rules.extend(patterns(&linears).into_iter().map(|pattern| (format!("+:{pattern}"), value.clone())));
    }
    rules
}

/// Patterns that match the paths of these linears and no others: one for each kind of linear, with its layers as alternatives.
///
/// Runtimes look a fused linear up under its fused name, which the pattern therefore has to match as well.
fn patterns(linears: &[&Linear]) -> Vec<String> {
    use model::linear::Role;
    let mut kinds: Vec<((String, String), Vec<String>)> = Vec::new();
    for linear in linears {
        let layer = linear.id.layer.to_string();
        let (parent, own) = linear.name.rsplit_once('.').unwrap_or(("", &linear.name));
        let fused = match linear.id.role {
            Role::Query | Role::Key | Role::Value => "|qkv_proj",
            Role::Gate | Role::Up => "|gate_up_proj",
            Role::QueryLatent | Role::KeyValueLatent => "|fused_qkv_a_proj",
            Role::KeyValue
            | Role::Output
            | Role::Down
            | Role::QueryKeyValue
            | Role::GateUp
            | Role::Embedding
            | Role::Head => "",
        };
        let module = format!("({}{fused})$", regex::escape(own));
        let parent = if parent.is_empty() { String::new() } else { format!("{parent}.") };
        let (before, after) = match parent.split_once(&format!(".{layer}.")) {
            Some((before, after)) => {
                (format!("{}\\.", regex::escape(before)), format!("\\.{}{module}", regex::escape(after)))
            }
            None => (regex::escape(&parent), module),
        };
        let layer = if after.starts_with("\\.") { layer } else { String::new() };
        match kinds.iter_mut().find(|(kind, _)| *kind == (before.clone(), after.clone())) {
            Some((_, layers)) => layers.push(layer),
            None => kinds.push(((before, after), vec![layer])),
        }
    }
    kinds
        .into_iter()
        .map(|((before, after), layers)| match &layers[..] {
            [layer] => format!("{before}{layer}{after}"),
            _ => format!("{before}({}){after}", layers.join("|")),
        })
        .collect()
}

/// Module paths within a layer of the kinds that are quantized.
pub(super) fn quantized_modules(plan: &[PlannedLinear]) -> Vec<Vec<String>> {
    let layer_of = |linear: &Linear| {
        let marker = format!(".{}.", linear.id.layer);
        linear.name.split_once(&marker).map_or_else(|| linear.name.clone(), |(_, within)| within.to_owned())
    };
    let mut modules: Vec<(usize, Vec<String>)> = Vec::new();
    let first_layer = plan.first().map_or(0, |planned| planned.linear.id.layer);
    for planned in
        plan.iter().filter(|planned| planned.scheme.is_some() && planned.linear.id.layer == first_layer)
    {
        let module = layer_of(&planned.linear);
        match modules.last_mut() {
            Some((group, names)) if *group == planned.fused_group => names.push(module),
            _ => modules.push((planned.fused_group, vec![module])),
        }
    }
    modules.into_iter().map(|(_, names)| names).collect()
}
