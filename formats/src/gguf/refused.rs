//! Where llama.cpp would compute something else than the model, and the file would babble: said before anything is written.

use model::Model;
use model::architecture::{
    Factor, LlamaCpp, LoadedBiases, Mlp, Positions, Scores, Setting, Unturned, Window,
};
use model::experts::ExpertNumbers;
use model::hyperparameters::{Activation, GateClamp, Rotation};
use model::rope::RopeScaling;

/// Every so many layers one does not rotate, where layers are listed that do.
const UNTURNED_PERIOD: usize = 4;
/// Of every norm over latent features, which config.json does not have.
const LATENT_EPS: f64 = 1e-6;
/// So many layers mean to it that queries are made from the input.
const WITHOUT_QUERY_LATENTS: [usize; 2] = [26, 27];
/// How gates are clamped where they are.
const CLAMP: GateClamp = GateClamp { alpha: 1.702, limit: 7.0 };

/// The window of the layers that have one, where llama.cpp has windows on the same layers.
pub(super) fn window(model: &Model) -> Option<usize> {
    let Window::AllButEvery(period) = model.architecture.layer.attention.window else { return None };
    let windows = &model.hyperparameters.windows;
    let window = windows.iter().flatten().next().copied()?;
    let expected = |layer: usize| (!(layer + 1).is_multiple_of(period)).then_some(window);
    windows.iter().enumerate().all(|(layer, found)| *found == expected(layer)).then_some(window)
}

/// Fails where llama.cpp would compute something else than the model. What differs so little that everybody runs it so is added to `notes`.
pub(super) fn demand_same(model: &Model, there: LlamaCpp, notes: &mut Vec<String>) -> Result<(), String> {
    demand_parts(model, there)?;
    demand_activation(model, there.name)?;
    demand_biases(model, there)?;
    let numbers = &model.hyperparameters;
    if there.tied_head && !numbers.tied_head {
        return Err(format!(
            "llama.cpp takes the embedding for the head of {}, which is not tied here",
            there.name
        ));
    }
    demand_factors(model, there, notes)?;
    if let Some(experts) = &numbers.experts {
        demand_routing(model, experts, there)?;
    }
    demand_rotations(model, there.name)
}

/// Parts that not all of llama.cpp's architectures have.
fn demand_parts(model: &Model, there: LlamaCpp) -> Result<(), String> {
    let (numbers, architecture) = (&model.hyperparameters, model.architecture);
    let attention = &architecture.layer.attention;
    let capped = numbers.factors.attention_cap.is_some() || numbers.factors.logit_cap.is_some();
    let local = matches!(attention.positions, Positions::Rotary { local: true, .. });
    let biased_router = matches!(architecture.layer.mlp, Mlp::Experts { experts, .. } if experts.router_bias);
    let parts = [
        ("a norm behind the embedding", architecture.embedding_norm.is_some(), there.parts.embedding_norm),
        ("a table of positions", architecture.positions.is_some(), there.parts.positions),
        ("slopes for heads (ALiBi)", attention.positions == Positions::Alibi, there.parts.alibi),
        ("soft caps", capped, there.parts.caps),
        ("latent features of attention", numbers.latent.is_some(), there.parts.latent),
        ("attention sinks", attention.sinks.is_some(), there.parts.sinks),
        ("clamped gates", numbers.clamp.is_some(), there.parts.sinks),
        ("a router with a bias", biased_router, there.parts.sinks),
        ("frequencies of their own for layers with a window", local, there.parts.local_frequencies),
        ("linears beside the embedding", model.projections().is_some(), false),
    ];
    if let Some((part, ..)) = parts.iter().find(|(_, has, runs)| *has && !runs) {
        return Err(format!("llama.cpp runs {} without {part}", there.name));
    }
    if there.parts.caps && (numbers.factors.attention_cap.is_none() || numbers.factors.logit_cap.is_none()) {
        return Err(format!("llama.cpp caps logits and products of queries and keys in {}", there.name));
    }
    if model.positions().is_some_and(|(_, offset)| offset != 0) {
        return Err(format!("llama.cpp has position 0 in row 0 of the table of {}", there.name));
    }
    if numbers.clamp.is_some_and(|clamp| clamp != CLAMP) {
        return Err(format!(
            "llama.cpp clamps gates of {} as {CLAMP:?}, not as {:?}",
            there.name, numbers.clamp
        ));
    }
    let of_latent = numbers.latent.is_some_and(|latent| latent.query_rank.is_some());
    if of_latent && WITHOUT_QUERY_LATENTS.contains(&numbers.layers) {
        return Err(format!(
            "llama.cpp runs {} of {} layers without latent features of queries",
            there.name, numbers.layers
        ));
    }
    if numbers.latent.is_some() && numbers.norm_eps != LATENT_EPS {
        return Err(format!(
            "llama.cpp norms latent features of {} with `rms_norm_eps` {}, and the model with {LATENT_EPS}",
            there.name, numbers.norm_eps
        ));
    }
    Ok(())
}

fn demand_activation(model: &Model, name: &str) -> Result<(), String> {
    let found = model.hyperparameters.activation;
    if model.hyperparameters.clamp.is_some() {
        return Ok(());
    }
    let usual = model.architecture.defaults.iter().find(|(key, _)| *key == "hidden_act");
    let smooth = usual.is_some_and(|(_, setting)| *setting != Setting::Text("silu"));
    let same = match found {
        Activation::Silu => !smooth,
        // It has one approximation for both.
        Activation::Gelu | Activation::GeluTanh => smooth,
        Activation::Relu => false,
    };
    if same {
        return Ok(());
    }
    let runs = if smooth { "gelu" } else { "silu" };
    Err(format!("llama.cpp runs {name} with the activation {runs}, not {found:?}"))
}

fn demand_biases(model: &Model, there: LlamaCpp) -> Result<(), String> {
    let numbers = &model.hyperparameters;
    let biases = [numbers.attention_input_bias, numbers.attention_output_bias, numbers.mlp_bias];
    match there.biases {
        LoadedBiases::Never if biases.contains(&true) => {
            Err(format!("llama.cpp knows no biases of linears in {}", there.name))
        }
        LoadedBiases::Always if biases.contains(&false) => {
            Err(format!("llama.cpp asks for the biases of all linears in {}", there.name))
        }
        _ => Ok(()),
    }
}

/// What llama.cpp divides products of queries and keys by, squared, where no file says it.
pub(super) fn attention_root(there: LlamaCpp, layers: usize, [hidden, heads, head_dim]: [usize; 3]) -> usize {
    if there.rooted_by_hidden == Some(layers) { hidden / heads.max(1) } else { head_dim }
}

fn demand_factors(model: &Model, there: LlamaCpp, notes: &mut Vec<String>) -> Result<(), String> {
    let (numbers, factors) = (&model.hyperparameters, &model.architecture.factors);
    let said = |factor: Factor| matches!(factor, Factor::Key(_) | Factor::OneOver(_));
    let extents = [numbers.hidden_size, numbers.heads, numbers.head_dim];
    let root = attention_root(there, numbers.layers, extents) as f32;
    // What the stretch of positions makes of both factors is its own.
    let temperature = match numbers.rope.scaling {
        RopeScaling::Yarn { temperature, .. } if numbers.latent.is_some() => temperature,
        _ => 1.0,
    };
    let usual = (temperature * temperature / f64::from(root).sqrt()) as f32;
    let found = numbers.factors.attention;
    if !said(factors.attention) && (found - usual).abs() > f32::EPSILON * usual {
        return Err(format!(
            "llama.cpp scales the products of queries and keys of {} by {usual}, not by {found}",
            there.name
        ));
    }
    let (root, found) = ((numbers.hidden_size as f32).sqrt(), numbers.factors.embedding);
    if matches!(factors.embedding, Factor::RoundedRootOf(_)) && found != root {
        notes.push(format!(
            "llama.cpp multiplies what the embedding of {} gives by {root}, and the model by {found}, which its type rounds that to",
            there.name
        ));
    }
    Ok(())
}

/// Fails where llama.cpp would send tokens elsewhere, or weigh their experts otherwise.
fn demand_routing(model: &Model, numbers: &ExpertNumbers, there: LlamaCpp) -> Result<(), String> {
    let Mlp::Experts { experts, .. } = model.architecture.layer.mlp else { return Ok(()) };
    let (name, routing) = (there.name, &numbers.routing);
    if there.says_routing {
        if numbers.shared_width.is_none() {
            return Err(format!("llama.cpp runs {name} with an expert that every token passes"));
        }
        let leading = numbers.layers.iter().take_while(|experts| !**experts).count();
        if numbers.layers[leading..].contains(&false) {
            return Err(format!(
                "llama.cpp runs all layers of {name} with experts behind the first dense ones"
            ));
        }
        return match routing.groups {
            Some(groups) if groups.summed != 2 => Err(format!(
                "llama.cpp takes the groups of experts of {name} with the best two of each, not the best one (`topk_method`)"
            )),
            _ => Ok(()),
        };
    }
    if let Some(dense) = numbers.layers.iter().position(|&experts| !experts) {
        return Err(format!("llama.cpp runs every layer of {name} with experts, and layer {dense} is dense"));
    }
    let plain = routing.scores == Scores::Softmax && routing.factor == 1.0 && routing.groups.is_none();
    if !plain || routing.normalized != experts.llama_cpp_normalizes {
        let how = if experts.llama_cpp_normalizes { "divides" } else { "does not divide" };
        return Err(format!(
            "llama.cpp {how} the weights of the experts of {name} by their sum (norm_topk_prob)"
        ));
    }
    Ok(())
}

fn demand_rotations(model: &Model, name: &str) -> Result<(), String> {
    let numbers = &model.hyperparameters;
    let Positions::Rotary { unturned, local, .. } = model.architecture.layer.attention.positions else {
        return Ok(());
    };
    let turns = |layer: usize| match unturned {
        Unturned::None => true,
        Unturned::Listed => !(layer + 1).is_multiple_of(UNTURNED_PERIOD),
        Unturned::WithoutWindow => numbers.windows[layer].is_some(),
    };
    let differs = |(layer, found): (usize, &Rotation)| turns(layer) != (*found != Rotation::None);
    if let Some(layer) = numbers.rotations.iter().enumerate().position(differs) {
        return Err(format!(
            "llama.cpp leaves every {UNTURNED_PERIOD}th layer of {name} without rotation, which is another rule than layer {layer}'s"
        ));
    }
    match &numbers.local_rope {
        Some(rope) if local && (rope.scaling != RopeScaling::Default || rope.dim != numbers.rope.dim) => {
            Err(format!("llama.cpp does not stretch the frequencies of the layers of {name} with a window"))
        }
        _ => Ok(()),
    }
}
