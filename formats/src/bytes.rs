//! Numbers and names from bytes that nobody vouches for.

/// A place in a file's bytes.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'b> {
    bytes: &'b [u8],
    place: usize,
}

impl<'b> Reader<'b> {
    pub(crate) fn new(bytes: &'b [u8]) -> Self {
        Self { bytes, place: 0 }
    }

    pub(crate) fn place(&self) -> usize {
        self.place
    }

    /// Bytes in all.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether all was read.
    pub(crate) fn is_at_end(&self) -> bool {
        self.place == self.bytes.len()
    }

    /// The same bytes from another place.
    pub(crate) fn at(self, place: u64) -> Result<Self, String> {
        let found = usize::try_from(place).ok().filter(|&place| place <= self.bytes.len());
        let place = found.ok_or_else(|| format!("refers to byte {place} of {}", self.bytes.len()))?;
        Ok(Self { place, ..self })
    }

    pub(crate) fn bytes(&mut self, count: u64, what: &str) -> Result<&'b [u8], String> {
        let rest = &self.bytes[self.place..];
        let fits = usize::try_from(count).ok().filter(|&count| count <= rest.len());
        let Some(count) = fits else {
            return Err(format!(
                "ends within {what} at byte {}: {count} bytes expected, {} left",
                self.place,
                rest.len()
            ));
        };
        self.place += count;
        Ok(&rest[..count])
    }

    pub(crate) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], String> {
        let bytes = self.bytes(N as u64, what)?;
        Ok(std::array::from_fn(|k| bytes[k]))
    }

    pub(crate) fn u32(&mut self, what: &str) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(crate) fn u64(&mut self, what: &str) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A number that must not be negative.
    pub(crate) fn count(&mut self, what: &str) -> Result<u32, String> {
        let at = self.place;
        let found = i32::from_le_bytes(self.array(what)?);
        u32::try_from(found).map_err(|_| format!("has {found} for {what} at byte {at}"))
    }

    /// `count` numbers; their bytes are there before any memory is taken.
    pub(crate) fn numbers(&mut self, count: u64, what: &str) -> Result<Vec<f32>, String> {
        let bytes = self.bytes(count.saturating_mul(4), what)?;
        Ok(bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    /// Text of `length` bytes.
    pub(crate) fn text(&mut self, length: u64, what: &str) -> Result<String, String> {
        let bytes = self.bytes(length, what)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| format!("has {what} that is not UTF-8"))
    }
}
