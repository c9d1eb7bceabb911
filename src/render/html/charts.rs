//! Charts as SVG, drawn by plotters. Colours that it writes stand for the page's, which differ by theme, and are replaced by their names.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::escape;
use crate::report::LinearRow;
use crate::showing::Distribution;

pub(super) const INK: RGBColor = RGBColor(1, 2, 3);
pub(super) const LINE: RGBColor = RGBColor(1, 2, 4);
/// On the darker half of a heat map's colours; in the dark theme the brighter.
const INVERSE: RGBColor = RGBColor(1, 2, 7);
const ORIGINAL: RGBColor = RGBColor(1, 2, 5);
pub(super) const OUTPUT: RGBColor = RGBColor(1, 2, 6);
/// What the page calls them.
const NAMES: [(&str, &str); 5] = [
    ("#010203", "var(--soft)"),
    ("#010204", "var(--line)"),
    ("#010205", "var(--original)"),
    ("#010206", "var(--output)"),
    ("#010207", "var(--card)"),
];
/// Steps of a heat map's colours.
const STEPS: usize = 9;
/// Size of the letters.
pub(super) const LETTERS: i32 = 15;
/// Width of a chart: what a phone shows without making letters too small.
pub(super) const WIDTH: i32 = 480;

/// Values in rows and columns: roles and layers, or layers and experts.
pub(super) struct Cells {
    roles: Vec<String>,
    layers: usize,
    /// Row, column, value.
    values: Vec<(usize, usize, f64)>,
    low: f64,
    high: f64,
}

impl Cells {
    /// The mean of `value` over the linears of each layer and role.
    pub(super) fn of(rows: &[LinearRow], value: impl Fn(&LinearRow) -> f64) -> Self {
        let mut roles: Vec<String> = Vec::new();
        let mut sums: std::collections::BTreeMap<(usize, usize), (f64, f64)> =
            std::collections::BTreeMap::new();
        for row in rows {
            let role = row.name.rsplit('.').next().unwrap_or(&row.name);
            let place = roles.iter().position(|known| known == role).unwrap_or_else(|| {
                roles.push(role.to_owned());
                roles.len() - 1
            });
            // The first number of a module path is its decoder layer.
            let layer = row.name.split('.').find_map(|part| part.parse().ok()).unwrap_or(0);
            let sum = sums.entry((place, layer)).or_default();
            *sum = (sum.0 + value(row), sum.1 + 1.0);
        }
        let values: Vec<(usize, usize, f64)> =
            sums.into_iter().map(|((role, layer), (sum, count))| (role, layer, sum / count)).collect();
        Self::new(roles, values)
    }

    /// Named rows, and values by row and column.
    pub(super) fn new(roles: Vec<String>, values: Vec<(usize, usize, f64)>) -> Self {
        let positive = || values.iter().map(|&(.., value)| value).filter(|value| *value > 0.0);
        let (low, high) = (positive().fold(f64::INFINITY, f64::min), positive().fold(0.0, f64::max));
        Self {
            roles,
            layers: values.iter().map(|&(_, layer, _)| layer + 1).max().unwrap_or(0),
            low,
            high,
            values,
        }
    }

    /// The step of a value's colour, by its logarithm.
    fn step(&self, value: f64) -> usize {
        if value <= self.low || self.high <= self.low {
            return 0;
        }
        let share = (value / self.low).ln() / (self.high / self.low).ln();
        ((share * STEPS as f64) as usize).min(STEPS - 1)
    }

    /// Whether the map needs the page's width.
    pub(super) fn is_wide(&self) -> bool {
        self.layers > 24
    }

    /// One rectangle for each; with `numbers` whole values are written into them.
    pub(super) fn heat_map(&self, title: &str, numbers: bool) -> String {
        let letters = self.roles.iter().map(String::len).max().unwrap_or(0) as i32;
        let left = (letters * LETTERS * 11 / 20).clamp(30, 160) + 10;
        // A fixed width for each layer once there are many: the page lets a wide chart be pushed sideways.
        let cell = ((WIDTH - left - 4) / self.layers.max(1) as i32).clamp(9, 64);
        let width = (left + cell * self.layers as i32 + 4).max(WIDTH / 2);
        let row = 26;
        let height = row * self.roles.len() as i32 + 22;
        let every = (30 / cell).max(1) as usize;
        draw((width, height), title, |area| {
            let style = |horizontal, vertical| {
                let font = ("sans-serif", LETTERS).into_font();
                font.color(&INK).pos(Pos::new(horizontal, vertical))
            };
            for (place, role) in self.roles.iter().enumerate() {
                let middle = row * place as i32 + row / 2;
                area.draw(&Text::new(role.clone(), (left - 8, middle), style(HPos::Right, VPos::Center)))?;
            }
            for layer in (0..self.layers).step_by(every) {
                let middle = left + cell * layer as i32 + cell / 2;
                let below = row * self.roles.len() as i32 + 5;
                area.draw(&Text::new(layer.to_string(), (middle, below), style(HPos::Center, VPos::Top)))?;
            }
            for &(role, layer, value) in &self.values {
                let (x, y) = (left + cell * layer as i32, row * role as i32);
                let color = RGBColor(9, 9, self.step(value) as u8);
                area.draw(&Rectangle::new([(x, y), (x + cell - 1, y + row - 2)], color.filled()))?;
                if numbers && cell >= 14 {
                    let middle = (x + cell / 2, y + row / 2);
                    let ink = if self.step(value) > STEPS / 2 { &INVERSE } else { &INK };
                    let style = style(HPos::Center, VPos::Center).color(ink);
                    area.draw(&Text::new(format!("{value:.0}"), middle, style))?;
                }
            }
            Ok(())
        })
    }

    /// What the colours mean.
    pub(super) fn legend(&self) -> String {
        let steps: String =
            (0..STEPS).map(|step| format!("<i style=\"background:var(--h{step})\"></i>")).collect();
        let number = |value: f64| if value >= 1.0 { format!("{value:.0}") } else { format!("{value:.1e}") };
        let low = if self.low.is_finite() { self.low } else { 0.0 };
        format!("<p class=\"legend\">{} {steps} {}</p>\n", number(low), number(self.high))
    }
}

/// Weights before, filled, and after, as a line.
pub(super) fn weights(original: &Distribution, quantized: &Distribution) -> String {
    let most = original.shares.iter().chain(&quantized.shares).copied().fold(0.0, f64::max);
    draw((WIDTH, 240), "weights before and after", |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(6)
            .x_label_area_size(26)
            .y_label_area_size(44)
            .build_cartesian_2d(original.first..original.last, 0.0..most.max(f64::MIN_POSITIVE) * 1.05)?;
        axis(&mut chart, &|value| format!("{value:.0}"))?;
        chart.draw_series(bars(original, ORIGINAL))?;
        chart.draw_series(std::iter::once(PathElement::new(outline(quantized), OUTPUT.stroke_width(2))))?;
        Ok(())
    })
}

/// Decimal logarithms of scales.
pub(super) fn scales(scales: &Distribution) -> String {
    let most = scales.shares.iter().copied().fold(0.0, f64::max);
    draw((WIDTH, 240), "magnitudes of scales", |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(6)
            .margin_right(30)
            .x_label_area_size(26)
            .y_label_area_size(44)
            .build_cartesian_2d(scales.first..scales.last, 0.0..most.max(f64::MIN_POSITIVE) * 1.05)?;
        axis(&mut chart, &|value| format!("{:.1e}", 10_f64.powf(*value)))?;
        chart.draw_series(bars(scales, OUTPUT))?;
        Ok(())
    })
}

type Plane<'a, 'b> = ChartContext<
    'a,
    SVGBackend<'b>,
    Cartesian2d<plotters::coord::types::RangedCoordf64, plotters::coord::types::RangedCoordf64>,
>;
type Drawn<'b> = Result<(), DrawingAreaErrorKind<<SVGBackend<'b> as DrawingBackend>::ErrorType>>;

/// Lines and numbers: what is counted along, shares up.
fn axis<'b>(chart: &mut Plane<'_, 'b>, label: &dyn Fn(&f64) -> String) -> Drawn<'b> {
    chart
        .configure_mesh()
        .y_labels(4)
        .y_label_formatter(&|share| percent(*share))
        .y_label_style(("sans-serif", LETTERS).into_font().color(&INK))
        .light_line_style(TRANSPARENT)
        .bold_line_style(LINE)
        .axis_style(LINE)
        .x_labels(5)
        .x_label_style(("sans-serif", LETTERS).into_font().color(&INK))
        .x_label_formatter(label)
        .draw()
}

/// A share as a label says it.
fn percent(share: f64) -> String {
    // Sums of steps leave crumbs.
    format!("{} %", (share * 1000.0).round() / 10.0)
}

fn bars(found: &Distribution, color: RGBColor) -> impl Iterator<Item = Rectangle<(f64, f64)>> + '_ {
    let step = (found.last - found.first) / found.shares.len().max(1) as f64;
    found.shares.iter().enumerate().map(move |(place, &share)| {
        let left = found.first + step * place as f64;
        Rectangle::new([(left, 0.0), (left + step * 0.92, share)], color.filled())
    })
}

/// The upper edge of what [`bars`] would draw.
fn outline(found: &Distribution) -> Vec<(f64, f64)> {
    let step = (found.last - found.first) / found.shares.len().max(1) as f64;
    let edges = found.shares.iter().enumerate().flat_map(|(place, &share)| {
        let left = found.first + step * place as f64;
        [(left, share), (left + step, share)]
    });
    edges.collect()
}

/// Draws into an SVG element that is as wide as there is room, in the page's colours.
pub(super) fn draw(
    (width, height): (i32, i32),
    title: &str,
    act: impl FnOnce(
        &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    ) -> Result<(), DrawingAreaErrorKind<std::io::Error>>,
) -> String {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (width as u32, height as u32)).into_drawing_area();
        // Into memory nothing fails; what could not be drawn is missing.
        let _ = act(&area);
        let _ = area.present();
    }
    for (color, name) in NAMES {
        svg = svg.replace(color, name);
    }
    for step in 0..STEPS {
        svg = svg.replace(&format!("#09090{step}"), &format!("var(--h{step})"));
    }
    let start = svg.find("<svg").unwrap_or(0);
    let end = svg[start..].find('>').map_or(start, |end| start + end + 1);
    let opening = format!(
        "<svg viewBox=\"0 0 {width} {height}\" style=\"--width:{width}px\" role=\"img\" aria-label=\"{}\" xmlns=\"http://www.w3.org/2000/svg\">",
        escape(title)
    );
    format!("{opening}{}", &svg[end..])
}
