let escape text =
  let buffer = Buffer.create (String.length text) in
  String.iter
    (function
      | '<' -> Buffer.add_string buffer "&lt;"
      | '&' -> Buffer.add_string buffer "&amp;"
      | c -> Buffer.add_char buffer c)
    text;
  Buffer.contents buffer

let page ~title lines =
  let body = String.concat "\n" (List.map (fun line -> "<p>" ^ line ^ "</p>") lines) in
  Printf.sprintf "<html><title>%s</title>\n%s\n</html>\n" (escape title) body

let visitor (v : Store.visitor) = Printf.sprintf "%s, views %d" (escape v.name) v.views
