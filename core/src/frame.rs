//! Frames on the wire: the length as u32 in network byte order, then that many bytes of JSON.
//!
//! Pure functions, since the client reads them with poll(2) and the resolver with tokio.

/// The longest request, in bytes. Our own are shorter than 1 KiB.
pub const REQUEST_MAX: usize = 64 * 1024;

/// The longest answer, in bytes: a roster of 5,000 users (the quota of an AWS account) takes about 1 MiB.
pub const ANSWER_MAX: usize = 16 * 1024 * 1024;

/// Bytes before the body.
pub const HEADER: usize = 4;

/// A body is longer than the receiver takes.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {length} bytes, more than {max}")]
pub struct TooLong {
    /// The length in the header.
    pub length: usize,
    /// The longest length that is taken.
    pub max: usize,
}

/// Returns `body` as a frame.
///
/// # Errors
/// Returns [`TooLong`] if it has more than `max` bytes.
pub fn encode(body: &[u8], max: usize) -> Result<Vec<u8>, TooLong> {
    let too_long = TooLong { length: body.len(), max };
    if body.len() > max {
        return Err(too_long);
    }
    let header = u32::try_from(body.len()).map_err(|_| too_long)?.to_be_bytes();
    Ok([header.as_slice(), body].concat())
}

/// Returns the length of the body that follows `header`.
///
/// # Errors
/// Returns [`TooLong`] if it is more than `max` bytes, so that nothing is allocated for it.
pub fn body_length(header: [u8; HEADER], max: usize) -> Result<usize, TooLong> {
    let length = usize::try_from(u32::from_be_bytes(header)).unwrap_or(usize::MAX);
    if length > max { Err(TooLong { length, max }) } else { Ok(length) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_frame_of_four_gigabytes_is_refused_by_its_header() {
        assert_eq!(
            body_length([0xff; 4], REQUEST_MAX),
            Err(TooLong { length: 0xffff_ffff, max: REQUEST_MAX })
        );
        assert!(encode(&[0; 11], 10).is_err());
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_read_back(body in prop::collection::vec(any::<u8>(), 0..2000)) {
            let frame = encode(&body, REQUEST_MAX).unwrap();
            let header = frame[..HEADER].try_into().unwrap();
            prop_assert_eq!(body_length(header, REQUEST_MAX), Ok(body.len()));
            prop_assert_eq!(&frame[HEADER..], &body[..]);
        }
    }
}
