//! The list of headers in a map of headers, exactly (a01).
//!
//! NATS headers are text, and async-nats keeps them in a map that forgets the order across names. What is plain travels
//! natively, for readers of any make. Where that alone would not bring the list back, `Ebus-Order` says how: items
//! joined by `.`, each either the number of a native name (in the order of their bytes, each use taking that name's
//! next value) or `b<name>~<value>` in base64url for what cannot travel natively.

use std::collections::BTreeMap;

use async_nats::HeaderMap;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use ebus_core::Headers;

use crate::convert::{is_own, is_servers};

/// The header that holds the order.
pub(crate) const ORDER: &str = "Ebus-Order";

/// Whether a value comes back as it went: no control characters, no white space at its ends (async-nats trims it).
pub(crate) fn is_plain(text: &str) -> bool {
    !text.contains(char::is_control)
        && !text.starts_with(char::is_whitespace)
        && !text.ends_with(char::is_whitespace)
}

/// Whether a name may be a native header: a token, and none that the server or we give a meaning to.
fn is_native_name(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':')
        && !is_servers(name)
        && !is_own(name)
}

fn native_value<'a>(name: &str, value: &'a Bytes) -> Option<&'a str> {
    std::str::from_utf8(value).ok().filter(|text| is_native_name(name) && is_plain(text))
}

/// Gives every native header to `put`, and the order if it is needed.
pub(crate) fn encode(list: &Headers, mut put: impl FnMut(&str, String)) {
    let mut names: Vec<&str> = Vec::with_capacity(list.len());
    let mut exact = true;
    for (name, value) in list.iter() {
        match native_value(name, value) {
            Some(text) => {
                put(name, text.to_owned());
                names.push(name);
            }
            None => exact = false,
        }
    }
    names.sort_unstable();
    names.dedup();
    if exact && names.len() <= 1 {
        return;
    }
    let mut order = String::new();
    for (name, value) in list.iter() {
        if !order.is_empty() {
            order.push('.');
        }
        match (native_value(name, value), names.binary_search(&name)) {
            (Some(_), Ok(index)) => order.push_str(&index.to_string()),
            _ => {
                order.push('b');
                URL_SAFE_NO_PAD.encode_string(name, &mut order);
                order.push('~');
                URL_SAFE_NO_PAD.encode_string(value, &mut order);
            }
        }
    }
    put(ORDER, order);
}

/// The list. What of it the order does not account for (somebody changed the headers on the way) follows at the end,
/// sorted by name: nothing is dropped.
pub(crate) fn decode(map: &HeaderMap, order: Option<&str>, keep: impl Fn(&str) -> bool) -> Headers {
    let native: BTreeMap<&str, &Vec<async_nats::HeaderValue>> =
        map.iter().map(|(name, values)| (name.as_ref(), values)).filter(|(name, _)| keep(name)).collect();
    let mut native: Vec<_> = native.into_iter().map(|(name, values)| (name, values.iter())).collect();
    let mut list = Headers::new();
    for item in order.into_iter().flat_map(|order| order.split('.')) {
        if let Some(encoded) = item.strip_prefix('b') {
            if let Some((name, value)) = decode_item(encoded) {
                list.append(name, value);
            }
        } else if let Some((name, values)) = item.parse().ok().and_then(|index: usize| native.get_mut(index))
            && let Some(value) = values.next()
        {
            list.append(*name, Bytes::copy_from_slice(value.as_str().as_bytes()));
        }
    }
    for (name, values) in native {
        for value in values {
            list.append(name, Bytes::copy_from_slice(value.as_str().as_bytes()));
        }
    }
    list
}

fn decode_item(encoded: &str) -> Option<(String, Vec<u8>)> {
    let (name, value) = encoded.split_once('~')?;
    let name = String::from_utf8(URL_SAFE_NO_PAD.decode(name).ok()?).ok()?;
    Some((name, URL_SAFE_NO_PAD.decode(value).ok()?))
}
