//! The same values on other grids, or a reason why not.

mod support;

use quantizer::express::{Inexact, express};
use quantizer::scheme::{Granularity, ScaleDtype, Scheme, Symmetry};
use quantizer::settings::BUILT_IN;
use quantizer::{Problem, QuantizedTensor, solver};
use support::{groups, other_grids, scheme, schemes, weight};

fn rounded(scheme: Scheme) -> QuantizedTensor {
    let weight = weight(3, 12, 64);
    let problem = Problem { weight: weight.view(), hessian: None, output: None, scheme };
    solver::find("rtn").unwrap().solve(&problem, &BUILT_IN[0].settings).unwrap().tensor
}

#[test]
fn every_grid_holds_what_is_on_it() {
    for scheme in schemes() {
        let tensor = rounded(scheme);
        assert_eq!(express(&tensor, scheme).as_ref(), Ok(&tensor), "{scheme:?}");
    }
}

#[test]
fn wider_codes_smaller_groups_and_other_offsets_hold_the_same_values() {
    for bits in [2, 3, 4] {
        let symmetric = rounded(scheme(bits, groups(32), Symmetry::Symmetric));
        for wider in [bits, 5, 8] {
            for size in [16, 32] {
                for symmetry in [Symmetry::Symmetric, Symmetry::Asymmetric, Symmetry::Minimum] {
                    let to = Scheme { scale_dtype: ScaleDtype::F16, ..scheme(wider, groups(size), symmetry) };
                    let found = express(&symmetric, to).unwrap();
                    assert_eq!(found.scheme(), to);
                    assert_eq!(found.dequantize(), symmetric.dequantize(), "{to:?}");
                    // And back again.
                    let back = express(&found, Scheme { granularity: groups(16), ..symmetric.scheme() });
                    assert_eq!(back.unwrap().dequantize(), symmetric.dequantize(), "{to:?}");
                }
            }
        }
    }
}

#[test]
fn what_cannot_be_held_is_refused_with_the_reason() {
    let asymmetric = rounded(scheme(4, groups(16), Symmetry::Asymmetric));
    let to = |found: &QuantizedTensor, scheme| express(found, scheme).unwrap_err();
    let refusal = to(&asymmetric, scheme(4, groups(32), Symmetry::Asymmetric));
    assert!(matches!(refusal, Inexact::Groups { columns: 32, .. }), "{refusal}");
    let refusal = to(&asymmetric, scheme(3, groups(16), Symmetry::Asymmetric));
    assert!(matches!(refusal, Inexact::Codes { bits: 3, .. }), "{refusal}");
    // Fifteen steps and a zero near the end of them need five bits around a middle.
    assert!(express(&asymmetric, scheme(5, groups(16), Symmetry::Symmetric)).is_ok());
    for table in other_grids().into_iter().filter(|scheme| scheme.levels.table().is_some()) {
        let refusal = to(&asymmetric, table);
        assert!(matches!(refusal, Inexact::Levels { .. }), "{refusal}");
    }
    let products = Scheme {
        scale_dtype: ScaleDtype::Integers { least: 1, most: 63 },
        ..scheme(4, groups(16), Symmetry::Minimum)
    };
    assert_eq!(to(&asymmetric, products), Inexact::Products);
    let single = Scheme { scale_dtype: ScaleDtype::F32, ..scheme(4, groups(16), Symmetry::Symmetric) };
    let refusal = to(&rounded(single), Scheme { scale_dtype: ScaleDtype::F16, ..single });
    assert!(matches!(refusal, Inexact::Scale { .. }), "{refusal}");
    let free = Scheme { scale_dtype: ScaleDtype::F16, ..scheme(4, groups(32), Symmetry::Minimum) };
    let refusal = to(&rounded(free), Scheme { symmetry: Symmetry::Asymmetric, ..free });
    assert!(matches!(refusal, Inexact::Zero { .. }), "{refusal}");
    let rows = rounded(scheme(4, Granularity::PerChannel, Symmetry::Symmetric));
    let refusal = to(&rows, scheme(4, Granularity::PerTensor, Symmetry::Symmetric));
    assert!(matches!(refusal, Inexact::Groups { .. }), "{refusal}");
}

#[test]
fn a_scale_of_zero_that_somebody_stored_stands_for_zeros() {
    let tensor = rounded(scheme(4, groups(16), Symmetry::Symmetric));
    let mut scales = tensor.scales().to_owned();
    scales[[2, 1]] = 0.0;
    let read = QuantizedTensor::new(tensor.scheme(), tensor.codes().to_owned(), scales, None).unwrap();
    assert!(read.dequantize().row(2).iter().skip(16).take(16).all(|&weight| weight == 0.0));
    assert_eq!(express(&read, tensor.scheme()).unwrap(), read);
}
