//! The header `traceparent` of W3C Trace Context: it travels beside the envelope, in the message's headers.

use crate::rules::Broken;

/// The header's name, as the recommendation writes it.
pub(crate) const NAME: &str = "traceparent";

/// `00-<32 hex>-<16 hex>-<2 hex>` in lower case, neither id all zero.
pub(crate) fn check(text: &str) -> Result<(), Broken> {
    let mut parts = text.split('-');
    let mut hex = |len: usize| {
        parts.next().filter(|part| {
            part.len() == len && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        })
    };
    let parsed = (hex(2), hex(32), hex(16), hex(2));
    let some = |id: &str| id.bytes().any(|b| b != b'0');
    match parsed {
        (Some("00"), Some(trace), Some(parent), Some(_))
            if some(trace) && some(parent) && parts.next().is_none() =>
        {
            Ok(())
        }
        _ => Err(Broken::new(
            NAME,
            "it must be 00-<trace id, 32 hex digits>-<parent id, 16>-<flags, 2> in lower case, neither id zero",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_form_of_the_recommendation_is_taken() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(check(good), Ok(()));
        for bad in [
            "",
            "00",
            &good.to_uppercase(),
            &good.replacen("00", "ff", 1),
            &good[..good.len() - 1],
            &format!("{good}-00"),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
