//! On memory's shelf and on a store's, with room for two stripes and for all.

use ndarray::Array2;

use super::*;
use crate::factor::cholesky_upper;
use crate::sample::{Sample, in_pools};

#[derive(Debug, Default)]
struct Bytes(Mutex<Vec<u8>>);

impl Store for Bytes {
    fn write(&self, place: u64, bytes: &[u8]) -> io::Result<()> {
        let mut all = self.0.lock().unwrap();
        let place = place as usize;
        // What nobody wrote is not zero.
        let end = all.len().max(place + bytes.len());
        all.resize(end, 0x5a);
        all[place..place + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn read(&self, place: u64, bytes: &mut [u8]) -> io::Result<()> {
        let all = self.0.lock().unwrap();
        let place = place as usize;
        let from = all.get(place..place + bytes.len());
        from.map(|from| bytes.copy_from_slice(from)).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

fn shelves() -> Vec<Arc<Shelf>> {
    let store = |working| Shelf::of_store(Arc::new(Bytes::default()), working);
    vec![Shelf::memory(), store(0), store(4 << 20), store(u64::MAX)]
}

fn on<T: Number>(shelf: &Arc<Shelf>, matrix: ArrayView2<'_, T>) -> Triangle<T> {
    let here = Triangle::of_symmetric(matrix);
    let mut triangle = Triangle::zeros(matrix.nrows(), shelf);
    triangle.combine(&here, |to, from| *to = *from).unwrap();
    triangle
}

fn hessian(n: usize) -> Array2<f64> {
    Sample::new(n as u64).hessian(n)
}

fn distance(a: &Array2<f64>, b: &Array2<f64>) -> f64 {
    let largest = |m: &Array2<f64>| m.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
    largest(&(a - b)) / largest(b)
}

#[test]
fn stripes_come_back_on_every_shelf() {
    for n in [0, 1, 255, 256, 257, 700] {
        let h = hessian(n.max(1)).slice_move(s![..n, ..n]);
        for shelf in shelves() {
            let triangle = on(&shelf, h.view());
            assert_eq!(triangle.dense(false, |x| x).unwrap(), h);
            assert_eq!(triangle.diagonal().unwrap(), h.diag().to_vec());
            let twice = triangle.convert(|x| 2.0 * x as f32).unwrap();
            assert_eq!(twice.dense(false, f64::from).unwrap(), h.mapv(|x| f64::from(2.0 * x as f32)));
            let zeros = Triangle::<f32>::zeros(n, &shelf).dense(false, |x| x).unwrap();
            assert!(zeros.iter().all(|&x| x == 0.0));
            let length: usize = (0..triangle.stripes()).map(|k| triangle.read(k).unwrap().len()).sum();
            assert_eq!(bytes(n as u64, 8), 8 * length as u64);
        }
    }
}

#[test]
fn what_is_dropped_makes_room() {
    let store = Arc::new(Bytes::default());
    let shelf = Shelf::of_store(store.clone(), 0);
    let triangle = on(&shelf, hessian(300).view());
    let length = store.0.lock().unwrap().len();
    drop(triangle);
    let again = Triangle::<f64>::zeros(300, &shelf);
    assert!(again.diagonal().unwrap().iter().all(|&x| x == 0.0), "what was there before is not seen");
    drop(again);
    drop(on(&shelf, hessian(300).view()));
    assert_eq!(store.0.lock().unwrap().len(), length);
}

#[test]
fn the_factor_is_that_of_the_dense_matrix_and_the_same_on_every_shelf() {
    for n in [1, 33, 256, 600, 1100] {
        let h = hessian(n);
        let dense = cholesky_upper(h.clone()).unwrap();
        let b = Sample::new(9).matrix(130, n).mapv(f64::from);
        let factored = |shelf: &Arc<Shelf>| {
            // Nothing above the diagonal is read.
            let mut triangle = on(shelf, h.view());
            let spoil = |rows: Range<usize>, mut stripe: ArrayViewMut2<'_, f64>| {
                for ((row, column), entry) in stripe.indexed_iter_mut() {
                    if column > rows.start + row {
                        *entry = f64::NAN;
                    }
                }
            };
            triangle.modify(spoil).unwrap();
            let factor = triangle.factor().unwrap();
            let mut solved = b.dot(&h);
            factor.solve_right(solved.view_mut()).unwrap();
            (factor.dense(true, |x| x).unwrap(), solved)
        };
        let (expected, solved) = factored(&Shelf::memory());
        assert!(distance(&expected.t().to_owned(), &dense) < 1e-13, "{n}");
        assert!(distance(&solved, &b) < 1e-9, "{n}");
        for shelf in shelves() {
            assert_eq!(factored(&shelf), (expected.clone(), solved.clone()), "{n}");
        }
    }
}

#[test]
fn the_failed_pivot_is_that_of_the_matrix() {
    for (n, k) in [(5, 4), (300, 0), (300, 255), (300, 299), (600, 70), (600, 300)] {
        let mut r = cholesky_upper(hessian(n)).unwrap();
        r[[k, k]] = 0.0;
        let mut h = r.dot(&r.t());
        h[[k, k]] -= 0.25;
        for shelf in shelves() {
            match on(&shelf, h.view()).factor() {
                Err(FactorError::NotPositiveDefinite(error)) => {
                    assert_eq!(error.pivot, k, "{n}");
                    assert!((error.value + 0.25).abs() < 1e-9, "{n} {k}: {}", error.value);
                }
                other => panic!("{n} {k}: {other:?}"),
            }
        }
    }
}

#[test]
fn products_with_the_lower_triangle_are_those_with_the_whole() {
    for (m, n) in [(1, 3), (7, 256), (130, 700)] {
        let h = hessian(n);
        let single = h.mapv(|x| x as f32);
        let d = Sample::new(4).matrix(m, n);
        let product = d.mapv(f64::from).dot(&h);
        let form = (&product * &d.mapv(f64::from)).sum();
        let mut first = None;
        for shelf in shelves() {
            let triangle = on(&shelf, single.view());
            let found = triangle.product(d.view()).unwrap();
            assert!(distance(&found.mapv(f64::from), &product) < 1e-5);
            let sum = triangle.quadratic_form(d.view()).unwrap();
            assert!((sum - form).abs() < 1e-5 * form, "{sum}, expected {form}");
            let (expected, expected_sum) = first.get_or_insert((found.clone(), sum));
            assert_eq!((&found, sum), (&*expected, *expected_sum));
        }
    }
}

#[test]
fn no_bit_depends_on_the_number_of_threads() {
    let h = hessian(900);
    let b = Sample::new(9).matrix(200, 900).mapv(f64::from);
    let results = in_pools(|| {
        let factor = on(&Shelf::memory(), h.view()).factor().unwrap();
        let mut solved = b.clone();
        factor.solve_right(solved.view_mut()).unwrap();
        (factor.dense(true, |x| x).unwrap(), solved)
    });
    assert!(results.iter().all(|result| *result == results[0]));
}

#[test]
fn a_store_that_fails_says_so() {
    #[derive(Debug)]
    struct Full;
    impl Store for Full {
        fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn read(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }
    let shelf = Shelf::of_store(Arc::new(Full), 0);
    let mut triangle = Triangle::<f64>::zeros(3, &shelf);
    let error = triangle.modify(|_, mut stripe| stripe.fill(1.0)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
}
