
_quantc_in_words() {
    local -a words=()
    local word cur prev list="" before="" i
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word="${COMP_WORDS[i]}"
        if ((i > 1)) && [[ $word == = && ${COMP_WORDS[i - 1]} == --* ]]; then
            # A flag and its value are two words however they are joined.
            ((i == COMP_CWORD)) && words+=("")
        elif ((i > 2)) && [[ $word == : || ${COMP_WORDS[i - 1]} == : ]]; then
            words[${#words[@]} - 1]+="$word"
        else
            words+=("$word")
        fi
    done
    cur="${words[${#words[@]} - 1]}"
    prev="${words[${#words[@]} - 2]}"
    [[ $cur == *,* ]] && list="${cur%,*},"
    # What readline takes for words before the one that it completes stays as it is.
    [[ $cur == *:* && $COMP_WORDBREAKS == *:* ]] && before="${cur%"${cur##*:}"}"
    local -a COMP_WORDS=("${words[@]}")
    local COMP_CWORD=$((${#words[@]} - 1))
    _quantc "$1" "${cur#"$list"}" "$prev"
    for i in "${!COMPREPLY[@]}"; do
        word="$list${COMPREPLY[i]}"
        COMPREPLY[i]="${word#"$before"}"
    done
}

if [[ "${BASH_VERSINFO[0]}" -eq 4 && "${BASH_VERSINFO[1]}" -ge 4 || "${BASH_VERSINFO[0]}" -gt 4 ]]; then
    complete -F _quantc_in_words -o nosort -o bashdefault -o default quantc
else
    complete -F _quantc_in_words -o bashdefault -o default quantc
fi
