//! Outputs of one run as points: divergence over size.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::charts::{INK, LETTERS, LINE, OUTPUT, WIDTH, draw as drawn};
use crate::render::text::bytes;

const HEIGHT: i32 = 300;
/// Room for the labels of the axes.
const LEFT: i32 = 58;
const BELOW: i32 = 28;
/// Radius of a point.
const RADIUS: i32 = 5;
/// Names that a label lists, of points that lie on each other.
const NAMED: usize = 3;

/// An output.
#[derive(Clone, Debug)]
pub(in crate::render) struct Point {
    pub(in crate::render) name: String,
    /// Of all its files of weights.
    pub(in crate::render) bytes: u64,
    /// From the original, nats a token.
    pub(in crate::render) divergence: f64,
}

/// Where numbers are on an axis.
struct Scale {
    low: f64,
    high: f64,
    /// Pixels of both ends.
    from: i32,
    to: i32,
}

/// Left, top, right and lower edge, pixels.
type Frame = [i32; 4];

/// Points with names, the divergence on a logarithmic axis.
pub(in crate::render) fn draw(points: &[Point]) -> String {
    let logarithm = |point: &Point| point.divergence.max(1e-9).log10();
    let across = Scale::of(points.iter().map(|point| point.bytes as f64), 0.02, [LEFT + 14, WIDTH - 14]);
    let up = Scale::of(points.iter().map(logarithm), 0.05, [HEIGHT - BELOW - 12, 14]);
    let places: Vec<(i32, i32)> =
        points.iter().map(|point| (across.at(point.bytes as f64), up.at(logarithm(point)))).collect();
    drawn((WIDTH, HEIGHT), "divergence over size", |area| {
        let style = |horizontal, vertical| {
            ("sans-serif", LETTERS).into_font().color(&INK).pos(Pos::new(horizontal, vertical))
        };
        for (value, label) in round_numbers(up.low, up.high) {
            let y = up.at(value);
            area.draw(&PathElement::new(vec![(LEFT, y), (WIDTH, y)], LINE))?;
            area.draw(&Text::new(label, (LEFT - 8, y), style(HPos::Right, VPos::Center)))?;
        }
        for step in 0..4 {
            let value = across.low + (across.high - across.low) * f64::from(step) / 3.0;
            let side = [HPos::Left, HPos::Center, HPos::Center, HPos::Right][step as usize];
            let label = Text::new(
                bytes(value.max(0.0) as u64),
                (across.at(value), HEIGHT - BELOW + 8),
                style(side, VPos::Top),
            );
            area.draw(&label)?;
        }
        for &place in &places {
            area.draw(&Circle::new(place, RADIUS, OUTPUT.filled()))?;
        }
        for (label, [left, top, ..]) in labels(points, &places) {
            area.draw(&Text::new(label, (left, top), style(HPos::Left, VPos::Top)))?;
        }
        Ok(())
    })
}

impl Scale {
    /// Of all `values` and a `margin` of their range on both sides.
    fn of(values: impl Iterator<Item = f64>, margin: f64, [from, to]: [i32; 2]) -> Self {
        let (low, high) = values
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        let range = (high - low).max(high.abs() * 0.02).max(1e-3);
        Self { low: low - margin * range, high: low + (1.0 + margin) * range, from, to }
    }

    fn at(&self, value: f64) -> i32 {
        let share = (value - self.low) / (self.high - self.low);
        self.from + (share * f64::from(self.to - self.from)).round() as i32
    }
}

/// Round numbers between two decimal logarithms, as logarithms, with what they are; the fewer the wider apart those are.
fn round_numbers(low: f64, high: f64) -> Vec<(f64, String)> {
    let digits: &[u32] = match high - low {
        2.0.. => &[1],
        0.7.. => &[1, 2, 5],
        _ => &[1, 2, 3, 4, 5, 6, 7, 8, 9],
    };
    let powers = low.floor() as i32..=high.ceil() as i32;
    let numbers = powers.flat_map(|power| {
        digits.iter().map(move |&digit| (f64::from(digit).log10() + f64::from(power), power, digit))
    });
    let label = |power: i32, digit: u32| match power {
        0.. => format!("{}", f64::from(digit) * 10.0_f64.powi(power)),
        _ => format!("{:.*}", power.unsigned_abs() as usize, f64::from(digit) * 10.0_f64.powi(power)),
    };
    numbers
        .filter(|(value, ..)| (low..=high).contains(value))
        .map(|(value, power, digit)| (value, label(power, digit)))
        .collect()
}

/// A label beside each heap of points, and where it is; none where it would lie on another or on a point.
fn labels(points: &[Point], places: &[(i32, i32)]) -> Vec<(String, Frame)> {
    let mut heaps: Vec<((i32, i32), Vec<&str>)> = Vec::new();
    for (point, &place) in points.iter().zip(places) {
        let near = |(x, y): (i32, i32)| (x - place.0).abs() < 2 * RADIUS && (y - place.1).abs() < 2 * RADIUS;
        match heaps.iter_mut().find(|(there, _)| near(*there)) {
            Some((_, names)) => names.push(&point.name),
            None => heaps.push((place, vec![&point.name])),
        }
    }
    let mut taken: Vec<Frame> =
        places.iter().map(|&(x, y)| [x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS]).collect();
    let mut found = Vec::new();
    for ((x, y), names) in heaps {
        let more = names.len().saturating_sub(NAMED);
        let mut label = names[..names.len().min(NAMED)].join(", ");
        if more > 0 {
            label.push_str(&format!(", {more} more"));
        }
        let width = label.chars().count() as i32 * LETTERS * 11 / 20;
        let aside = |left: i32, top: i32| [left, top, left + width, top + LETTERS];
        let (right, left) = (x + RADIUS + 5, x - RADIUS - 5 - width);
        let middle = (x - width / 2).clamp(LEFT, (WIDTH - width).max(LEFT));
        let level = y - LETTERS / 2;
        let candidates = [
            aside(right, level),
            aside(left, level),
            aside(middle, y - RADIUS - 3 - LETTERS),
            aside(middle, y + RADIUS + 3),
        ];
        let free = candidates.into_iter().find(|frame| {
            frame[0] >= LEFT
                && frame[2] <= WIDTH
                && frame[1] >= 0
                && frame[3] <= HEIGHT - BELOW
                && !taken.iter().any(|other| overlap(frame, other))
        });
        if let Some(frame) = free {
            taken.push(frame);
            found.push((label, frame));
        }
    }
    found
}

fn overlap(a: &Frame, b: &Frame) -> bool {
    a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_on_each_other_share_a_label_and_labels_do_not_overlap() {
        let point = |name: &str, bytes, divergence| Point { name: name.to_owned(), bytes, divergence };
        let points: Vec<Point> = (0..12)
            .map(|n| {
                point(&format!("format-{n}"), 3_000_000 + 40_000 * (n / 2), 0.002 * (1.0 + (n / 2) as f64))
            })
            .collect();
        let svg = draw(&points);
        assert_eq!(svg.matches("<circle").count(), 12, "{svg}");
        assert!(svg.contains("format-0, format-1") && svg.contains("0.005") && svg.contains("MB"), "{svg}");
        let places: Vec<(i32, i32)> = (0..40).map(|n| (100 + 7 * n, 100 + n % 5)).collect();
        let crowd: Vec<Point> = (0..40).map(|n| point(&format!("n{n}"), 1, 1.0)).collect();
        let frames: Vec<Frame> = labels(&crowd, &places).into_iter().map(|(_, frame)| frame).collect();
        for (number, frame) in frames.iter().enumerate() {
            assert!(!frames[..number].iter().any(|other| overlap(frame, other)));
        }
        assert!(!frames.is_empty());
    }

    #[test]
    fn equal_points_have_an_axis_too() {
        let points = vec![Point { name: "a".to_owned(), bytes: 10, divergence: 0.0 }; 2];
        assert!(draw(&points).contains("a, a"));
    }
}
