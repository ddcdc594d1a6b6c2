//! Bytes of a message: fixed-width little-endian numbers, texts with a length before them, in the order written.
//! Both ends are this process, so a malformed message is a bug of ours and reads as zeros and empty texts under
//! debug assertions.

/// Appends to a buffer that is reused from message to message.
pub struct Writer<'a>(pub &'a mut Vec<u8>);

impl Writer<'_> {
    /// One byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }
    /// Two bytes.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }
    /// Four bytes.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }
    /// Eight bytes.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }
    /// Sixteen bytes.
    pub fn u128(&mut self, value: u128) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }
    /// A flag and, where set, eight bytes.
    pub fn option(&mut self, value: Option<u64>) -> &mut Self {
        match value {
            Some(v) => self.u8(1).u64(v),
            None => self.u8(0),
        }
    }
    /// Bytes with their length.
    pub fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.u32(value.len() as u32);
        self.0.extend_from_slice(value);
        self
    }
    /// Text with its length.
    pub fn text(&mut self, value: &str) -> &mut Self {
        self.bytes(value.as_bytes())
    }
    /// A flag and, where set, a text.
    pub fn option_text(&mut self, value: Option<&str>) -> &mut Self {
        match value {
            Some(v) => self.u8(1).text(v),
            None => self.u8(0),
        }
    }
}

/// Reads what a [`Writer`] wrote.
#[derive(Clone, Copy)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        debug_assert!(self.0.len() >= count, "a message is read as it was written");
        let (head, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        head
    }
    fn array<const N: usize>(&mut self) -> [u8; N] {
        self.take(N).try_into().unwrap_or([0; N])
    }
    /// One byte.
    pub fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }
    /// Two bytes.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }
    /// Four bytes.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }
    /// Eight bytes.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }
    /// Sixteen bytes.
    pub fn u128(&mut self) -> u128 {
        u128::from_le_bytes(self.array())
    }
    /// See [`Writer::option`].
    pub fn option(&mut self) -> Option<u64> {
        (self.u8() == 1).then(|| self.u64())
    }
    /// See [`Writer::bytes`].
    pub fn bytes(&mut self) -> &'a [u8] {
        let count = self.u32() as usize;
        self.take(count)
    }
    /// See [`Writer::text`].
    pub fn text(&mut self) -> &'a str {
        std::str::from_utf8(self.bytes()).unwrap_or("")
    }
    /// See [`Writer::option_text`].
    pub fn option_text(&mut self) -> Option<&'a str> {
        (self.u8() == 1).then(|| self.text())
    }
}
