//! Numbers as text, for what is written once for each message.

/// How many digits a number has.
pub(crate) fn count(number: u64) -> usize {
    number.checked_ilog10().map_or(1, |log| log as usize + 1)
}

/// Appends a number.
pub(crate) fn push(text: &mut String, number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = number;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    text.extend(digits[at..].iter().map(|digit| char::from(*digit)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_written_as_the_formatter_does() {
        for number in
            [0, 1, 9, 10, 99, 100, 12_345, u64::from(u32::MAX), 10_000_000_000_000_000_000, u64::MAX]
        {
            let mut text = String::from("n");
            push(&mut text, number);
            assert_eq!(text, format!("n{number}"));
            assert_eq!(count(number), text.len() - 1);
        }
    }
}
