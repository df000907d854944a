// The start page and the memory in the status bar, for JupyterLab 4. No build step makes this file:
// it is the container that JupyterLab's module federation asks for (init, then get), and takes
// JupyterLab's own modules from the scope that it is given. The server renders what is shown, so
// that this file only fetches, places, and opens what is clicked.
(window._JUPYTERLAB ??= {}).labkit = (() => {
  let scope;

  const load = async (name) => {
    const versions = Object.values(scope[name] ?? {});
    if (!versions.length) throw new Error(`labkit: JupyterLab shares no ${name}`);
    return (await (versions.find((one) => one.loaded) ?? versions[0]).get())();
  };

  const STATUS_SECONDS = 3;
  const PANEL_SECONDS = 1;
  const NARROW_PIXELS = 800;

  const makePlugins = (modules) => {
    const { application, apputils, console: consoles, coreutils, notebook, services, statusbar } = modules;
    const { mainmenu, ui, widgets } = modules;
    const { Widget } = widgets;
    const settings = services.ServerConnection.makeSettings();
    const { URLExt, PageConfig } = coreutils;

    const fetchJson = async (path, query = {}) => {
      const url = URLExt.join(settings.baseUrl, "labkit", path) + URLExt.objectToQueryString(query);
      const response = await services.ServerConnection.makeRequest(url, {}, settings);
      if (!response.ok) throw new Error(`${response.status} ${response.statusText}`);
      return response.json();
    };

    const icon = new ui.LabIcon({
      name: "labkit:memory",
      svgstr:
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" width="16">' +
        '<path class="jp-icon3" fill="#616161" d="M7 7h10v10H7zM9 2h1.6v4H9zm4.4 0H15v4h-1.6zM9 18h1.6v4H9z' +
        'm4.4 0H15v4h-1.6zM2 9h4v1.6H2zm0 4.4h4V15H2zM18 9h4v1.6h-4zm0 4.4h4V15h-4z"/></svg>',
    });

    // The start page: one tab, redrawn whenever it comes into sight.
    class StartPage extends Widget {
      constructor(commands) {
        super();
        this.commands = commands;
        this.id = "labkit-start";
        this.title.label = "Start";
        this.title.closable = true;
        this.title.caption = "The labs, and how far you are";
        this.addClass("labkit-start");
        this.node.tabIndex = -1;
        this.node.innerHTML = '<p role="status">Reading the labs…</p>';
        this.node.addEventListener("click", (event) => this.open(event));
      }

      onAfterAttach() {
        this.refresh();
      }

      onAfterShow() {
        this.refresh();
      }

      onActivateRequest() {
        (this.node.querySelector(".labkit-next") ?? this.node).focus();
      }

      async refresh() {
        let said;
        try {
          said = await fetchJson("start");
        } catch (error) {
          said = { html: `<p role="status">The lab's server does not answer.</p>`, pending: true };
        }
        if (this.isDisposed) return;
        const held = document.activeElement;
        const path = this.node.contains(held) ? held.dataset.path : undefined;
        if (said.html !== this.drawn) {
          this.node.innerHTML = this.drawn = said.html;
          // What had the keyboard's focus has it again.
          if (this.node === held || path !== undefined) {
            const again = [...this.node.querySelectorAll("a")].find((one) => one.dataset.path === path);
            (again ?? this.node.querySelector(".labkit-next") ?? this.node).focus();
          }
        }
        if (said.pending) setTimeout(() => this.isVisible && this.refresh(), 2000);
      }

      say(device) {
        const line = this.node.querySelector('[data-labkit="device"]');
        if (line && device && line.textContent !== device) line.textContent = device;
      }

      async open(event) {
        const link = event.target.closest("a[data-path]");
        if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
        event.preventDefault();
        const { path, cell } = link.dataset;
        const opened = await this.commands.execute("docmanager:open", { path });
        if (!cell || !opened?.content?.widgets) return;
        await opened.context.ready;
        await opened.revealed;
        const notebook = opened.content;
        const place = notebook.widgets.findIndex((one) => one.model.id === cell);
        if (place < 0) return;
        notebook.activeCellIndex = place;
        // The cells are drawn one after the other, when the browser has time.
        for (let turn = 0; turn < 120 && !notebook.isDisposed; turn++) {
          if (notebook.widgets[place]?.node.isConnected) break;
          await new Promise((done) => setTimeout(done, 250));
        }
        if (!notebook.isDisposed) await notebook.scrollToItem(place, "start");
      }
    }

    // The panel in the side area: what the kernel of the current notebook measures, once a second.
    class MemoryPanel extends Widget {
      constructor() {
        super();
        this.id = "labkit-memory";
        this.title.icon = icon;
        this.title.caption = "Memory of devices and kernels";
        this.addClass("labkit-side");
        this.node.tabIndex = 0;
        this.node.setAttribute("role", "region");
        this.node.setAttribute("aria-label", "Memory");
        this.note = document.createElement("p");
        this.figures = document.createElement("div");
        this.node.append(this.note, this.figures);
      }

      onActivateRequest() {
        this.node.focus();
      }

      show_(said, name) {
        const word = said.silent
          ? `The kernel of ${name} does not answer now: the devices as the server sees them.`
          : said.kernel
            ? `The kernel of ${name}, and what others hold.`
            : "No notebook is in front: the devices as the server sees them.";
        if (this.note.textContent !== word) this.note.textContent = word;
        if (said.panel) this.figures.innerHTML = said.panel;
      }
    }

    class MemoryItem extends Widget {
      constructor(open) {
        super();
        this.addClass("labkit-status");
        this.button = document.createElement("button");
        this.button.type = "button";
        this.button.addEventListener("click", open);
        this.node.append(this.button);
        this.show_({ parts: ["memory"], details: [], nearly_full: "" });
      }

      show_(said) {
        const parts = said.nearly_full ? [`⚠ ${said.nearly_full} nearly full`, ...said.parts] : said.parts;
        const text = parts.join(" · ");
        if (text === this.text) return;
        this.text = text;
        this.button.replaceChildren(
          ...parts.map((part, place) => {
            const span = document.createElement("span");
            span.textContent = place ? ` · ${part}` : part;
            return span;
          }),
        );
        this.node.classList.toggle("labkit-warns", Boolean(said.nearly_full));
        this.button.title = [...said.details, "Click for the panel"].join("\n");
      }
    }

    const start = {
      id: "labkit:start",
      description: "The start page, which the plain URL of the lab opens.",
      autoStart: true,
      requires: [application.ILabShell],
      optional: [apputils.ICommandPalette, mainmenu.IMainMenu, application.ILayoutRestorer],
      activate: (app, shell, palette, menu, restorer) => {
        const style = document.createElement("link");
        style.rel = "stylesheet";
        style.href = URLExt.join(PageConfig.getOption("fullLabextensionsUrl"), "labkit/static/labkit.css");
        document.head.append(style);
        const command = "labkit:open-start";
        const tracker = new apputils.WidgetTracker({ namespace: "labkit-start" });
        let page;
        app.commands.addCommand(command, {
          label: "Start Page",
          caption: "The labs, and how far you are",
          execute: () => {
            if (!page || page.isDisposed) page = new StartPage(app.commands);
            if (!page.isAttached) shell.add(page, "main", { mode: "tab-before" });
            if (!tracker.has(page)) void tracker.add(page);
            shell.activateById(page.id);
            return page;
          },
        });
        palette?.addItem({ command, category: "Help" });
        menu?.helpMenu.addGroup([{ command }], 0);
        restorer?.restore(tracker, { command, name: () => "start" });
        document.addEventListener("labkit-memory", (event) => page?.isVisible && page.say(event.detail));
        // On a narrow page, the list of files would leave no room for the labs.
        const narrow = window.matchMedia(`(width < ${NARROW_PIXELS}px)`);
        narrow.addEventListener("change", () => narrow.matches && shell.collapseLeft());
        // The plain URL; /lab/tree/... asks for a file.
        const isPlain = !/\/tree(\/|$)/.test(window.location.pathname);
        void app.restored.then(async () => {
          if (narrow.matches) shell.collapseLeft();
          // Who reloads the page stays where they were.
          const isReload = performance.getEntriesByType("navigation")[0]?.type === "reload";
          if (!isPlain || (isReload && shell.currentWidget)) return;
          await app.commands.execute(command);
        });
      },
    };

    const memory = {
      id: "labkit:memory",
      description: "The memory of devices and kernels in the status bar, and its panel.",
      autoStart: true,
      requires: [application.ILabShell, statusbar.IStatusBar],
      optional: [notebook.INotebookTracker, consoles.IConsoleTracker],
      activate: (app, shell, bar, notebooks, terminals) => {
        const panel = new MemoryPanel();
        shell.add(panel, "right", { rank: 900 });
        const item = new MemoryItem(() => {
          if (panel.isVisible) return shell.collapseRight();
          if (window.innerWidth < NARROW_PIXELS) shell.collapseLeft();
          shell.activateById(panel.id);
        });
        bar.registerStatusItem("labkit:memory", { item, align: "left", rank: 1, priority: 2 });

        const findKernel = () => {
          // A console or the start page in front has no notebook; the last notebook's kernel counts.
          const front = shell.currentWidget;
          const held = [notebooks, terminals].find((tracker) => tracker?.has(front))
            ? front
            : (notebooks?.currentWidget ?? terminals?.currentWidget);
          return { id: held?.sessionContext?.session?.kernel?.id, name: held?.title.label ?? "" };
        };
        let asked = 0;
        const look = async () => {
          if (document.hidden) return;
          const kernel = findKernel();
          const number = ++asked;
          const query = { ...(kernel.id && { kernel: kernel.id }), ...(panel.isVisible && { panel: "1" }) };
          let said;
          try {
            said = await fetchJson("memory", query);
          } catch (error) {
            said = { parts: ["memory not measured"], details: ["The lab's server does not answer."], nearly_full: "" };
          }
          if (number !== asked) return;
          item.show_(said);
          if (panel.isVisible) panel.show_(said, kernel.name);
          document.dispatchEvent(new CustomEvent("labkit-memory", { detail: said.device }));
        };
        let timer;
        const tick = async () => {
          clearTimeout(timer);
          await look();
          clearTimeout(timer);
          timer = setTimeout(tick, 1000 * (panel.isVisible ? PANEL_SECONDS : STATUS_SECONDS));
        };
        shell.currentChanged.connect(() => void tick());
        document.addEventListener("visibilitychange", () => void tick());
        void app.restored.then(tick);
      },
    };
    return [start, memory];
  };

  return {
    init: (shared) => {
      scope = shared;
    },
    get: async () => {
      const names = {
        application: "@jupyterlab/application",
        apputils: "@jupyterlab/apputils",
        console: "@jupyterlab/console",
        coreutils: "@jupyterlab/coreutils",
        mainmenu: "@jupyterlab/mainmenu",
        notebook: "@jupyterlab/notebook",
        services: "@jupyterlab/services",
        statusbar: "@jupyterlab/statusbar",
        ui: "@jupyterlab/ui-components",
        widgets: "@lumino/widgets",
      };
      const found = await Promise.all(
        Object.entries(names).map(async ([key, name]) => [key, await load(name)]),
      );
      const plugins = makePlugins(Object.fromEntries(found));
      return () => ({ __esModule: true, default: plugins });
    },
  };
})();
