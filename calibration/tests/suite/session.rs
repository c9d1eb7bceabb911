//! A sequence that grows against the whole one.

use crate::tiny::{InMemory, TINY};
use calibration::CalibrationError;
use calibration::evaluation::visit_logits;
use calibration::session::Session;
use ndarray::s;

#[test]
fn a_sequence_that_grows_in_any_steps_gives_the_logits_of_the_whole_one() {
    for name in TINY.iter() {
        let source = InMemory::open(name);
        let length = source.longest();
        let window: Vec<u32> = (0..length).map(|i| (i * i * 3 + i) as u32 % 64).collect();
        let mut expected = Vec::new();
        visit_logits(&source.model, &source, std::slice::from_ref(&window), &mut |seen| {
            expected.push(seen.to_owned());
        })
        .unwrap();
        let mut session = Session::open(&source.model, &source, length).unwrap();
        let mut first = 0;
        let check = |session: &mut Session<'_>, range: std::ops::Range<usize>| {
            let found = session.feed(&window[range.clone()]).unwrap();
            let difference = &found - &expected[0].slice(s![range.end - 1, ..]);
            let worst = difference.iter().fold(0.0_f32, |worst, d| worst.max(d.abs()));
            assert!(worst < 2e-5, "{name}, up to {}: {worst}", range.end);
        };
        // Models with learned positions have 64 of them.
        let steps: &[usize] = if length == 150 { &[70, 1, 1, 3, 65, 10] } else { &[40, 1, 1, 3, 14, 5] };
        for &step in steps {
            check(&mut session, first..first + step);
            first += step;
        }
        assert_eq!((session.position(), session.room()), (length, 0));
        assert!(matches!(session.feed(&[1]), Err(CalibrationError::Shape { .. })));
        // What is forgotten may come again, or something else.
        session.rewind(40);
        session.feed(&[9, 9, 9]).unwrap();
        session.rewind(40);
        check(&mut session, 40..60);
        session.rewind(1000);
        assert_eq!(session.position(), 60);
    }
}
