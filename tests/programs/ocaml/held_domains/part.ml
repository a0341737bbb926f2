let number = 0

let hold wait =
  let n = wait () in
  n + number
