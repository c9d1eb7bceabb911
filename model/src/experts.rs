//! The numbers of a model's experts: how many, how wide, in which layers, and how tokens are sent to them.

use serde_json::Value;

use crate::architecture::{
    Architecture, ExpertGroups, ExpertLayers, Experts, Mlp, Normalized, Scores, SharedExpert, SharedWidth,
};
use crate::error::ModelError;
use crate::hyperparameters::Keys;

/// Most experts of a layer: far above every model there is.
const MOST_EXPERTS: u64 = 4096;

/// Most experts of all layers together: each takes about a kilobyte before anything of it is read. The largest models have some 25 000.
const MOST_EXPERTS_IN_ALL: usize = 1 << 16;

/// The numbers of one model's experts.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertNumbers {
    /// Inner features of one expert.
    pub width: usize,
    /// Inner features of the expert that every token passes, where there is one.
    pub shared_width: Option<usize>,
    /// How tokens are sent.
    pub routing: Routing,
    /// For each layer whether it has experts; the others are dense.
    pub layers: Vec<bool>,
}

/// How a router sends tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routing {
    /// Experts of a layer.
    pub experts: usize,
    /// Experts that a token takes, the best first.
    pub chosen: usize,
    /// What becomes of the router's outputs.
    pub scores: Scores,
    /// Whether the scores of the chosen experts are divided by their sum.
    pub normalized: bool,
    /// What the weights are multiplied by.
    pub factor: f64,
    /// Groups of experts of which some are chosen first; none: all experts may be chosen.
    pub groups: Option<Groups>,
}

/// Groups of a layer's experts, which lie one after another and are equally large.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// How many there are.
    pub count: usize,
    /// How many a token takes, those with the largest sums.
    pub chosen: usize,
    /// How many of a group's best scores are added.
    pub summed: usize,
}

impl ExpertNumbers {
    /// None where the architecture has no experts.
    pub(crate) fn read(
        architecture: &Architecture,
        keys: &Keys<'_>,
        layers: usize,
    ) -> Result<Option<Self>, ModelError> {
        let Mlp::Experts { experts, .. } = architecture.layer.mlp else { return Ok(None) };
        let count = experts.keys.count;
        let key = count.iter().copied().find(|key| keys.get(key).is_some()).unwrap_or(count[0]);
        let count = keys.bounded(key, MOST_EXPERTS)?;
        let chosen = keys.bounded("num_experts_per_tok", MOST_EXPERTS)?;
        if count * layers > MOST_EXPERTS_IN_ALL {
            return Err(keys.wrong(key, format!("at most {MOST_EXPERTS_IN_ALL} in all {layers} layers")));
        }
        if chosen > count {
            return Err(keys.wrong("num_experts_per_tok", format!("at most the {count} experts")));
        }
        let normalized = match experts.routing.normalized {
            Normalized::Always => true,
            Normalized::Never => false,
            Normalized::Configured(default) => keys.flag("norm_topk_prob")?.unwrap_or(default),
        };
        let width = keys.extent(experts.keys.width)?;
        let routing = Routing {
            experts: count,
            chosen,
            scores: experts.routing.scores,
            normalized,
            factor: keys.number("routed_scaling_factor")?.unwrap_or(1.0),
            groups: groups(experts.routing.groups, keys, count, chosen)?,
        };
        if !(routing.factor.is_finite() && routing.factor > 0.0) {
            return Err(keys.wrong("routed_scaling_factor", "a number above 0".to_owned()));
        }
        Ok(Some(Self {
            width,
            shared_width: experts.shared.map_or(Ok(None), |shared| shared_width(&shared, keys, width))?,
            routing,
            layers: with_experts(experts, keys, layers)?,
        }))
    }
}

fn groups(
    rule: ExpertGroups,
    keys: &Keys<'_>,
    experts: usize,
    chosen: usize,
) -> Result<Option<Groups>, ModelError> {
    let summed = match rule {
        ExpertGroups::Never => return Ok(None),
        ExpertGroups::ByBestTwo => 2,
        ExpertGroups::ByMethod => match keys.text("topk_method")?.as_deref() {
            None | Some("greedy") => return Ok(None),
            Some("group_limited_greedy") => 1,
            Some(_) => return Err(keys.wrong("topk_method", "greedy or group_limited_greedy".to_owned())),
        },
    };
    let Some(count) = keys.get("n_group").map(|_| keys.bounded("n_group", MOST_EXPERTS)).transpose()? else {
        return Ok(None);
    };
    let size = experts / count;
    if !experts.is_multiple_of(count) || size < summed {
        let expected = format!("a number of equal groups of the {experts} experts, {summed} or more in each");
        return Err(keys.wrong("n_group", expected));
    }
    let taken = keys.bounded("topk_group", MOST_EXPERTS)?;
    if taken > count || taken * size < chosen {
        let expected = format!("at most the {count} groups, and enough for {chosen} experts");
        return Err(keys.wrong("topk_group", expected));
    }
    Ok((taken < count).then_some(Groups { count, chosen: taken, summed }))
}

fn shared_width(shared: &SharedExpert, keys: &Keys<'_>, width: usize) -> Result<Option<usize>, ModelError> {
    match shared.width {
        SharedWidth::Key(key) => keys.extent(key).map(Some),
        SharedWidth::Experts(key) => match keys.get(key).and_then(Value::as_u64) {
            Some(0) => Ok(None),
            _ => Ok(keys.get(key).map(|_| keys.bounded(key, 64)).transpose()?.map(|count| count * width)),
        },
    }
}

/// For each layer whether it has experts.
fn with_experts(experts: &Experts, keys: &Keys<'_>, layers: usize) -> Result<Vec<bool>, ModelError> {
    match experts.keys.layers {
        ExpertLayers::Every => Ok(vec![true; layers]),
        ExpertLayers::Sparse => {
            let step = keys.optional_extent("decoder_sparse_step")?.unwrap_or(1);
            let expected = || "a list of layers".to_owned();
            let dense = match keys.get("mlp_only_layers") {
                None => Vec::new(),
                Some(Value::Array(found)) => found
                    .iter()
                    .map(|layer| layer.as_u64().ok_or_else(|| keys.wrong("mlp_only_layers", expected())))
                    .collect::<Result<Vec<_>, _>>()?,
                Some(_) => return Err(keys.wrong("mlp_only_layers", expected())),
            };
            let is_sparse =
                |layer: usize| (layer + 1).is_multiple_of(step) && !dense.contains(&(layer as u64));
            Ok((0..layers).map(is_sparse).collect())
        }
        ExpertLayers::Later => {
            let first = keys.get("first_k_dense_replace").map_or(Some(0), Value::as_u64);
            let first =
                first.ok_or_else(|| keys.wrong("first_k_dense_replace", "a number of layers".to_owned()))?;
            let step = keys.optional_extent("moe_layer_freq")?.unwrap_or(1);
            Ok((0..layers).map(|layer| layer as u64 >= first && layer.is_multiple_of(step)).collect())
        }
    }
}
