open Lwt.Infix

let version = "one"
let home who = Render.page ~title:("home, version " ^ version) [ Render.visitor who ]

let stats who =
  let visitors = Printf.sprintf "%d visitors" (Store.count ()) in
  Render.page ~title:"stats" [ Render.visitor who; visitors ]

(* In flight while other requests are answered, and while a reload happens. *)
let slow who = Lwt_unix.sleep 0.02 >|= fun () -> home who
let rename who name = Render.page ~title:"renamed" [ Render.visitor (Store.rename who name) ]
