//! What llama.cpp computes for an architecture beyond what a file can say: where it differs, the file would babble.

use model::Model;
use model::architecture::{Factor, LlamaCpp, Positions, Setting, Unturned, Window};
use model::hyperparameters::{Activation, Rotation};

/// Rules of one of llama.cpp's architectures.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dialect {
    /// Which biases of linears it loads.
    biases: Biases,
    /// Whether fewer features than a head has may be rotated.
    pub(super) part_of_heads: bool,
    /// Whether it divides frequencies by factors of a tensor.
    pub(super) rope_tensor: bool,
    /// Whether its head always is the embedding.
    tied_head: bool,
    /// Whether it asks if the branches of a layer run in parallel.
    pub(super) asks_parallel: bool,
}

/// Which biases are loaded.
#[derive(Clone, Copy, Debug)]
enum Biases {
    /// Those that are there.
    Present,
    /// None.
    Never,
    /// All.
    Always,
}

const PLAIN: Dialect = Dialect {
    biases: Biases::Present,
    part_of_heads: false,
    rope_tensor: false,
    tied_head: false,
    asks_parallel: false,
};
const WITHOUT_BIASES: Dialect = Dialect { biases: Biases::Never, ..PLAIN };
const PARTLY_TURNED: Dialect = Dialect { part_of_heads: true, ..PLAIN };

/// By llama.cpp's names (0c1e570, `llama-model.cpp`); all others are plain.
const DIALECTS: [(&str, Dialect); 12] = [
    ("llama", Dialect { rope_tensor: true, ..PLAIN }),
    ("granite", Dialect { rope_tensor: true, ..PLAIN }),
    ("smollm3", WITHOUT_BIASES),
    ("olmo2", WITHOUT_BIASES),
    ("command-r", Dialect { tied_head: true, ..WITHOUT_BIASES }),
    ("cohere2", Dialect { tied_head: true, ..WITHOUT_BIASES }),
    ("phi3", PARTLY_TURNED),
    ("chatglm", PARTLY_TURNED),
    ("glm4", PARTLY_TURNED),
    ("phi2", Dialect { biases: Biases::Always, ..PARTLY_TURNED }),
    ("stablelm", Dialect { asks_parallel: true, ..PARTLY_TURNED }),
    ("starcoder2", Dialect { biases: Biases::Always, ..PLAIN }),
];

/// Every so many layers one does not rotate, where layers are listed that do.
const UNTURNED_PERIOD: usize = 4;

/// The rules of an architecture.
pub(super) fn of(there: LlamaCpp) -> Dialect {
    DIALECTS.iter().find(|(name, _)| *name == there.name).map_or(PLAIN, |(_, dialect)| *dialect)
}

/// The window of the layers that have one, where llama.cpp has windows on the same layers.
pub(super) fn window(model: &Model) -> Option<usize> {
    let Window::AllButEvery(period) = model.architecture.layer.attention.window else { return None };
    let windows = &model.hyperparameters.windows;
    let window = windows.iter().flatten().next().copied()?;
    let expected = |layer: usize| (!(layer + 1).is_multiple_of(period)).then_some(window);
    windows.iter().enumerate().all(|(layer, found)| *found == expected(layer)).then_some(window)
}

/// Fails where llama.cpp would compute something else than the model.
pub(super) fn demand_same(model: &Model, there: LlamaCpp) -> Result<(), String> {
    let (numbers, architecture) = (&model.hyperparameters, model.architecture);
    let name = there.name;
    let usual = architecture.defaults.iter().find(|(key, _)| *key == "hidden_act");
    let smooth = usual.is_some_and(|(_, setting)| *setting != Setting::Text("silu"));
    let same = match numbers.activation {
        Activation::Silu => !smooth,
        // It has one approximation for both.
        Activation::Gelu | Activation::GeluTanh => smooth,
        Activation::Relu => false,
    };
    if !same {
        let runs = if smooth { "gelu" } else { "silu" };
        return Err(format!(
            "llama.cpp runs {name} with the activation {runs}, not {:?}",
            numbers.activation
        ));
    }
    let biases = [numbers.attention_input_bias, numbers.attention_output_bias, numbers.mlp_bias];
    match of(there).biases {
        Biases::Never if biases.contains(&true) => {
            return Err(format!("llama.cpp knows no biases of linears in {name}"));
        }
        Biases::Always if biases.contains(&false) => {
            return Err(format!("llama.cpp asks for the biases of all linears in {name}"));
        }
        _ => {}
    }
    if of(there).tied_head && !numbers.tied_head {
        return Err(format!("llama.cpp takes the embedding for the head of {name}, which is not tied here"));
    }
    let said = matches!(architecture.factors.attention, Factor::Key(_) | Factor::OneOver(_));
    let usual = 1.0 / (numbers.head_dim as f32).sqrt();
    if !said && numbers.factors.attention != usual {
        let found = numbers.factors.attention;
        return Err(format!("llama.cpp scales the attention of {name} by {usual}, not by {found}"));
    }
    let Positions::Rotary { unturned, .. } = architecture.layer.attention.positions else { return Ok(()) };
    let turns = |layer: usize| match unturned {
        Unturned::None => true,
        Unturned::Listed => !(layer + 1).is_multiple_of(UNTURNED_PERIOD),
        Unturned::WithoutWindow => numbers.windows[layer].is_some(),
    };
    let differs = |(layer, found): (usize, &Rotation)| turns(layer) != (*found != Rotation::None);
    match numbers.rotations.iter().enumerate().position(differs) {
        None => Ok(()),
        Some(layer) => Err(format!(
            "llama.cpp leaves every {UNTURNED_PERIOD}th layer of {name} without rotation, which is another rule than layer {layer}'s"
        )),
    }
}
